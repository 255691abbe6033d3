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
    this.layers = new Map(); // "beam/layer/painting" -> SpotsView
    this.spotsVersion = 0;
    this.#seen = -Infinity;
    this.#treatment = null;
    this.#seq = -1;
    this.#merged = { version: -1, beam: null, layers: [] };
  }

  #seen;
  #treatment;
  #seq;
  #merged;

  ageMs(now) {
    return now - this.#seen;
  }

  takeView(view, now) {
    const restarted = this.view !== null && view.boot_id !== this.view.boot_id;
    if (!restarted && view.seq === this.#seq) return; // the same again is nothing new
    if (restarted) this.forgetSpots();
    this.#seq = view.seq;
    this.#seen = now;
    this.stale = false;
    this.trouble = "";
    this.link = "open";
    this.view = view;
    const treatment = view.treatment?.id ?? null;
    if (treatment !== this.#treatment) {
      if (this.#treatment !== null) this.forgetSpots();
      this.#treatment = treatment;
    }
    const { breathing, gate_open: gate } = view.delivery;
    if (breathing !== null) {
      if (restarted || (this.breath.length && this.breath.at(-1).t > view.t_ns)) this.breath = [];
      this.breath.push({ t: view.t_ns / 1e9, value: breathing, gate });
      if (this.breath.length > BREATH_KEPT) this.breath.splice(0, this.breath.length - BREATH_KEPT);
    }
  }

  takeSpots(spots) {
    this.layers.set(`${spots.beam_number}/${spots.layer_index}/${spots.painting}`, spots);
    this.spotsVersion += 1;
  }

  takeEvent(event) {
    this.events.push(event);
    if (this.events.length > EVENTS_KEPT) this.events.splice(0, this.events.length - EVENTS_KEPT);
  }

  forgetSpots() {
    this.layers.clear();
    this.spotsVersion += 1;
  }

  /** The layers of a beam in the order of delivery; paintings of one layer put together. The same list until spots come. */
  layersOf(beam) {
    if (this.#merged.version !== this.spotsVersion || this.#merged.beam !== beam) {
      this.#merged = { version: this.spotsVersion, beam, layers: this.#merge(beam) };
    }
    return this.#merged.layers;
  }

  #merge(beam) {
    const merged = new Map();
    for (const spots of this.layers.values()) {
      if (spots.beam_number !== beam) continue;
      const layer = merged.get(spots.layer_index) ?? {
        index: spots.layer_index, energy: spots.energy_mev_u, parts: [], planned: 0, delivered: 0, complete: true,
      };
      layer.parts.push(spots);
      layer.planned += sum(spots.mu_planned);
      layer.delivered += sum(spots.mu_delivered);
      layer.complete &&= spots.complete;
      merged.set(spots.layer_index, layer);
    }
    return [...merged.values()].sort((a, b) => a.index - b.index);
  }
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

/** The beam that is treated now, or the one that was last. */
export function currentBeam(treatment) {
  if (!treatment?.beams.length) return null;
  const { beams, current } = treatment;
  return beams.find((beam) => beam.number === current) ?? beams.findLast((beam) => beam.layer > 0) ?? beams[0];
}
