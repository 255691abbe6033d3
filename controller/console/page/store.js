/** What is known of one room: its last view, layers of spots, a short past of breathing and of events. Draws nothing. */

const EVENTS_KEPT = 200;
const BREATH_KEPT = 600;
const NEAR = 0.02; // of a beam's meterset: sums of spots and of passes are rounded apart

export class RoomStore {
  constructor(room) {
    this.room = room;
    this.view = null;
    this.stale = true;
    this.trouble = ""; // why the room cannot show itself
    this.link = "opening";
    this.events = [];
    this.breath = []; // {t, value, gate}
    this.layers = new Map(); // "beam/layer/painting" -> SpotsView of this session
    this.before = new Map(); // the same -> SpotsViews of earlier sessions of this fraction, the earliest first
    this.plan = null; // as the facility holds it: asked for when only a part of it is treated
    this.#sure = true;
    this.spotsVersion = 0;
    this.#seen = -Infinity;
    this.#treatment = null;
    this.#seq = -1;
    this.#merged = { version: -1, beam: null, layers: [] };
    this.#held = new Map();
  }

  #seen;
  #treatment; // the session of which the layers are
  #seq;
  #merged;
  #sure; // whether what was held already adds up to what this session has given
  #held; // layers that were held already when the stream began: of this session, of an earlier one, or of something else

  ageMs(now) {
    return now - this.#seen;
  }

  takeView(view, now) {
    const restarted = this.view !== null && view.boot_id !== this.view.boot_id;
    if (!restarted && view.seq === this.#seq) return; // the same again is nothing new
    this.#seq = view.seq;
    this.#seen = now;
    this.stale = false;
    this.trouble = "";
    this.link = "open";
    this.view = view;
    this.#session(view, restarted);
    const { breathing, gate_open: gate } = view.delivery;
    if (breathing !== null) {
      if (restarted || (this.breath.length && this.breath.at(-1).t > view.t_ns)) this.breath = [];
      this.breath.push({ t: view.t_ns / 1e9, value: breathing, gate });
      if (this.breath.length > BREATH_KEPT) this.breath.splice(0, this.breath.length - BREATH_KEPT);
    }
  }

  takeSpots(spots) {
    this.layers.set(keyOf(spots), spots);
    this.spotsVersion += 1;
  }

  /** A layer that was held already, not one that is told as it happens: the next view tells of which session it can be. */
  takeHeldSpots(spots) {
    this.#held.set(keyOf(spots), spots);
  }

  takeEvent(event) {
    this.events.push(event);
    if (this.events.length > EVENTS_KEPT) this.events.splice(0, this.events.length - EVENTS_KEPT);
  }

  forgetSpots() {
    this.layers.clear();
    this.before.clear();
    this.#sure = true;
    this.spotsVersion += 1;
  }

  /** Layers and meterset of a beam as planned; the treatment knows only those that it delivers. Null while the plan is not known. */
  planned(beam) {
    const { treatment } = this.view;
    if (!treatment.remainder) return beam;
    return this.plan?.id === treatment.plan_id ? this.plan.beams.find((one) => one.number === beam.number) ?? null : null;
  }

  /** How many layers the bars stand for. */
  layerCount(beam) {
    const known = this.layersOf(beam.number).at(-1)?.index ?? -1;
    return Math.max(this.planned(beam)?.layers ?? 0, beam.layers, known + 1);
  }

  /** The number of the layer that beam is at, as the plan counts; null before the first. */
  layerNumber(beam) {
    const { treatment, delivery } = this.view;
    if (!beam.layer) return null;
    if (!treatment.remainder) return Math.min(beam.layer, beam.layers);
    const at = delivery.layer ?? this.layersOf(beam.number).findLast((layer) => layer.own)?.index ?? null;
    return at === null ? null : at + 1;
  }

  /** Whose layers are kept: of the treatment of this view; what was given before is kept apart while its remainder is treated. */
  #session(view, restarted) {
    const { treatment } = view;
    if (treatment === null) return; // a treatment that was put away may come again as its remainder
    const held = [...this.#held.values()];
    this.#held.clear();
    const now = `${treatment.id} ${treatment.started_utc} ${treatment.remainder}`;
    const same = !restarted && this.#treatment?.now === now;
    if (!same) {
      const follows = treatment.remainder && this.#treatment?.plan === treatment.plan_uid && this.#treatment.fraction === treatment.fraction;
      if (!follows || restarted) this.forgetSpots();
      for (const spots of this.layers.values()) this.#given(spots);
      this.layers.clear();
      this.spotsVersion += 1;
      this.#treatment = { now, plan: treatment.plan_uid, fraction: treatment.fraction };
    }
    if (held.length) this.#settle(view, held, same);
  }

  #given(spots) {
    const [key, of] = [keyOf(spots), JSON.stringify(spots)];
    const earlier = this.before.get(key) ?? [];
    if (!earlier.some((one) => JSON.stringify(one) === of)) this.before.set(key, [...earlier, spots]);
  }

  /** Layers carry no name of a session: which are of this one follows from how many it has begun and what it has given so far. */
  #settle({ treatment, delivery }, held, same) {
    for (const beam of treatment.beams) {
      const mine = held.filter((spots) => spots.beam_number === beam.number);
      const rest = same ? mine.filter((spots) => this.before.get(keyOf(spots))?.some((one) => JSON.stringify(one) === JSON.stringify(spots))) : [];
      const open = mine.filter((spots) => !rest.includes(spots));
      const own = same ? new Set(open.map((spots) => spots.layer_index)) : begun(open, beam, delivery.layer, treatment.remainder);
      for (const spots of open) {
        if (own.has(spots.layer_index)) this.layers.set(keyOf(spots), spots);
        else if (treatment.remainder) this.#given(spots);
      }
      if (same || !treatment.remainder || !mine.length) continue;
      const given = sum(this.layersOfSession(beam.number).map((spots) => sum(spots.mu_delivered)));
      this.#sure = Math.abs(given - beam.meterset_delivered) <= NEAR * beam.meterset_planned;
    }
    this.spotsVersion += 1;
  }

  /** Whether it is known of every layer which session gave it: what each gave in all is known otherwise, and has to add up. */
  sessionsSure(beam) {
    const { treatment } = this.view;
    const whole = treatment.remainder && this.planned(beam);
    if (!whole) return this.#sure;
    const before = sum(this.layersOf(beam.number).map((layer) => layer.before));
    return this.#sure && before <= whole.meterset - beam.meterset_planned + NEAR * whole.meterset;
  }

  layersOfSession(beam) {
    return [...this.layers.values()].filter((spots) => spots.beam_number === beam);
  }

  /** The layers of a beam in the order of delivery; paintings of one layer put together. The same list until spots come. */
  layersOf(beam) {
    if (this.#merged.version !== this.spotsVersion || this.#merged.beam !== beam) {
      this.#merged = { version: this.spotsVersion, beam, layers: this.#merge(beam) };
    }
    return this.#merged.layers;
  }

  /**
   * `planned`, `delivered`, `complete`: of this session, `own` when it has begun the layer; `before`: given by earlier sessions;
   * `whole`: what the plan asks of the layer, as far as it is known here.
   */
  #merge(beam) {
    const merged = new Map();
    const layerOf = ({ layer_index: index, energy_mev_u: energy }) => {
      if (!merged.has(index)) merged.set(
        index, { index, energy, parts: [], earlier: [], own: false, planned: 0, delivered: 0, before: 0, whole: 0, complete: true },
      );
      return merged.get(index);
    };
    for (const [key, sessions] of this.before) {
      if (sessions[0].beam_number !== beam) continue;
      const layer = layerOf(sessions[0]);
      layer.earlier.push(...sessions);
      layer.before += sum(sessions.map((spots) => sum(spots.mu_delivered)));
      layer.whole += sum(sessions[0].mu_planned);
      if (!this.layers.has(key)) layer.complete &&= sessions.at(-1).complete;
    }
    for (const [key, spots] of this.layers) {
      if (spots.beam_number !== beam) continue;
      const layer = layerOf(spots);
      layer.own = true;
      layer.parts.push(spots);
      layer.planned += sum(spots.mu_planned);
      layer.delivered += sum(spots.mu_delivered);
      if (!this.before.has(key)) layer.whole += sum(spots.mu_planned);
      layer.complete &&= spots.complete;
    }
    return [...merged.values()].sort((a, b) => a.index - b.index);
  }
}

const keyOf = (spots) => `${spots.beam_number}/${spots.layer_index}/${spots.painting}`;

/** Indices of those layers that this session has begun: the last ones up to the present one; of a whole beam the first ones. */
function begun(held, beam, at, remainder) {
  const indices = [...new Set(held.map((spots) => spots.layer_index))].sort((a, b) => a - b).filter((index) => at === null || index <= at);
  if (!beam.layer) return new Set();
  return new Set(remainder ? indices.slice(-beam.layer) : indices.slice(0, beam.layer));
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

/** The beam that is treated now, or the one that was last. */
export function currentBeam(treatment) {
  if (!treatment?.beams.length) return null;
  const { beams, current } = treatment;
  return beams.find((beam) => beam.number === current) ?? beams.findLast((beam) => beam.layer > 0) ?? beams[0];
}
