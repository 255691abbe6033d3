/** What is known of one room: its last view, layers of spots, a short past of breathing and of events. Draws nothing. */

const EVENTS_KEPT = 200;
const BREATH_KEPT = 600;

export class RoomStore {
  constructor(room) {
    this.room = room;
    this.view = null;
    this.stale = true;
    this.trouble = ""; // why the room cannot show itself
    this.link = "opening";
    this.events = [];
    this.breath = []; // {t, value, gate}
    this.plan = null; // as the facility holds it: asked for when only a part of it is treated
    this.spotsVersion = 0;
    this.#seen = -Infinity;
    this.#seq = -1;
    this.#merged = { version: -1, beam: null, layers: [] };
    this.#told = [];
    this.#begun = "";
    this.#shown = null;
  }

  #seen;
  #seq;
  #merged;
  #told; // sessions of which layers were told, in the order in which they came
  #begun; // what tells the treatment of the last view from the one before
  #shown; // of #told: the session of the last view, null before its first layer is told

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
    this.#session(view.treatment);
    const { breathing, gate_open: gate } = view.delivery;
    if (breathing !== null) {
      if (restarted || (this.breath.length && this.breath.at(-1).t > view.t_ns)) this.breath = [];
      this.breath.push({ t: view.t_ns / 1e9, value: breathing, gate });
      if (this.breath.length > BREATH_KEPT) this.breath.splice(0, this.breath.length - BREATH_KEPT);
    }
  }

  /** A layer, of this session or given by those before it; of which session it says itself. */
  takeSpots(spots) {
    let session = this.#told.find((one) => one.treatment === spots.treatment && one.number === spots.session);
    if (!session) this.#told.push(session = { treatment: spots.treatment, number: spots.session, own: new Map(), before: new Map() });
    (spots.earlier ? session.before : session.own).set(keyOf(spots), spots);
    this.spotsVersion += 1;
  }

  takeEvent(event) {
    this.events.push(event);
    if (this.events.length > EVENTS_KEPT) this.events.splice(0, this.events.length - EVENTS_KEPT);
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

  /**
   * Which session's layers are shown: the latest of the treatment of this view. The room tells its first layers, and what was given
   * before, a moment after it is loaded; until then nothing is shown, and never what the session before it gave as if it were its own.
   */
  #session(treatment) {
    if (treatment === null) return;
    const begun = `${treatment.id} ${treatment.started_utc} ${treatment.remainder}`;
    if (begun !== this.#begun) {
      this.#begun = begun;
      this.#told = this.#told.filter((one) => one !== this.#shown); // what is past is not shown again
      this.#shown = null;
      this.spotsVersion += 1;
    }
    const latest = this.#told.filter((one) => one.treatment === treatment.id).sort((a, b) => a.number - b.number).at(-1) ?? null;
    if (latest === null || latest === this.#shown) return;
    this.#shown = latest;
    this.#told.splice(0, this.#told.indexOf(latest));
    this.spotsVersion += 1;
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
    for (const spots of this.#shown?.before.values() ?? []) {
      if (spots.beam_number !== beam) continue;
      const layer = layerOf(spots);
      layer.earlier.push(spots);
      layer.before += sum(spots.mu_delivered);
      layer.whole += sum(spots.mu_planned);
      layer.complete &&= spots.complete;
    }
    for (const spots of this.#shown?.own.values() ?? []) {
      if (spots.beam_number !== beam) continue;
      const layer = layerOf(spots);
      if (!layer.own) layer.complete = true; // by this session, which is owed the rest
      layer.own = true;
      layer.parts.push(spots);
      layer.planned += sum(spots.mu_planned);
      layer.delivered += sum(spots.mu_delivered);
      if (!layer.earlier.length) layer.whole += sum(spots.mu_planned);
      layer.complete &&= spots.complete;
    }
    return [...merged.values()].sort((a, b) => a.index - b.index);
  }
}

const keyOf = (spots) => `${spots.beam_number}/${spots.layer_index}/${spots.painting}`;

const sum = (values) => values.reduce((total, value) => total + value, 0);

/** Whether something is prepared or treated, for which gantry and couch have to be somewhere also while they stand. */
export const underWay = (treatment) => ["loaded", "running"].includes(treatment?.status);

/** The beam that is treated now, or the one that was last. */
export function currentBeam(treatment) {
  if (!treatment?.beams.length) return null;
  const { beams, current } = treatment;
  return beams.find((beam) => beam.number === current) ?? beams.findLast((beam) => beam.layer > 0) ?? beams[0];
}
