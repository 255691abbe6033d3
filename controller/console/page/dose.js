/** Dose now: meterset of the beam, both monitors against the ceiling, permits, beam and energy. */

import { h, mark, panel, put, show, sign } from "./dom.js";
import { count, figure, percent } from "./words.js";
import { currentBeam } from "./store.js";

export function dosePanel() {
  const given = h("output", { class: "big number" });
  const planned = h("span", { class: "soft" });
  const part = h("span", { class: "number part" });
  const meter = bar("Meterset of the beam");
  const monitors = [monitor("Monitor 1"), monitor("Monitor 2")];
  const ceiling = h("p", { class: "soft small-print" });
  const earlier = h("p", { class: "soft small-print earlier", hidden: true });
  const element = panel(
    "Dose", { class: "dose" }, h("div", { class: "dose-head" }, given, planned, part), meter.element, earlier,
    ...monitors.map((one) => one.element), ceiling,
  );
  return {
    element,
    update(view, good, store) {
      const beam = currentBeam(view.treatment);
      const whole = beam && view.treatment.remainder ? store.planned(beam)?.meterset ?? null : null;
      show(earlier, Boolean(view.treatment?.remainder));
      put(earlier, whole === null ? "of this session; how much was given before is not known" : `of this session; given before: ${figure(
        Math.max(0, whole - beam.meterset_planned), 2,
      )} of ${figure(whole, 2)} ${beam.unit}`);
      put(given, beam && good ? figure(beam.meterset_delivered, 2) : "–");
      put(planned, beam ? `of ${figure(beam.meterset_planned, 2)} ${beam.unit}` : "no beam selected");
      put(part, beam && good ? percent(beam.meterset_delivered, beam.meterset_planned, beam.status === "complete") : "");
      meter.update(beam && good ? beam.meterset_delivered : null, beam?.meterset_planned ?? 0, null);
      const { counts1, counts2, counts2_max: top } = view.delivery;
      const full = top ? top * 1.08 : Math.max(counts1 ?? 0, counts2 ?? 0, 1) * 1.25;
      monitors[0].update(good ? counts1 : null, full, null);
      monitors[1].update(good ? counts2 : null, full, top);
      const apart = good && counts1 && counts2 ? ((counts2 - counts1) / counts1) * 100 : null;
      const words = [
        top ? `ceiling ${count(top)} counts` : "",
        apart === null ? "" : `monitor 2 reads ${apart >= 0 ? "+" : ""}${figure(apart, 1)} % against monitor 1`,
      ];
      put(ceiling, words.filter(Boolean).join("; "));
    },
  };
}

function monitor(name) {
  const value = h("output", { class: "number" });
  const meter = bar(name);
  return {
    element: h("div", { class: "monitor" }, h("span", { class: "soft" }, name), meter.element, h("div", {}, value)),
    update(counts, full, ceiling) {
      put(value, count(counts ?? NaN));
      meter.update(counts, full, ceiling);
    },
  };
}

function bar(name) {
  const fill = h("span", { class: "meter-fill" });
  const stop = h("span", { class: "meter-stop", title: "ceiling" });
  const element = h("div", { class: "meter", role: "meter", "aria-label": name, "aria-valuemin": "0" }, fill, stop);
  return {
    element,
    update(value, full, ceiling) {
      const share = value === null || value === undefined || full <= 0 ? 0 : Math.min(1, value / full);
      fill.style.transform = `scaleX(${share.toFixed(4)})`;
      show(stop, Boolean(ceiling));
      if (ceiling) stop.style.insetInlineStart = `${((100 * ceiling) / full).toFixed(2)}%`;
      mark(element, "aria-valuemax", String(full));
      mark(element, "aria-valuenow", value === null || value === undefined ? null : String(value));
    },
  };
}

const fact = (name, value) => h("div", {}, h("dt", {}, name), value);

/** The line above the fold: beam, energy, spill, and the three contributions to the permit. */
export function beamPanel() {
  const lamps = {
    permit_a: lamp("Permit A", "hard-wired chain"),
    permit_b: lamp("Permit B", "interlock system"),
    permit_r: lamp("Request", "this room asks for beam"),
    beam_enabled: lamp("Enabled", "all three are there"),
    beam_present: lamp("Beam", "beam is measured", "beam"),
  };
  const energy = h("dd"), species = h("dd"), layer = h("dd"), spill = h("dd");
  const held = h("span", { class: "held" });
  const element = panel(
    "Beam", { class: "beam-panel" },
    h("ul", { class: "lamps" }, ...Object.values(lamps).map((one) => one.element)),
    h("dl", { class: "facts across" },
      fact("Ion", species), fact("Energy", energy), fact("Layer", layer), fact("Spill", spill),
    ),
  );
  element.querySelector("h2").append(held); // beside the heading: beam goes on and off many times a minute, and nothing is to jump
  return {
    element,
    update(view, good, store) {
      const { delivery } = view;
      for (const [name, one] of Object.entries(lamps)) one.update(delivery[name], good);
      const beam = currentBeam(view.treatment);
      put(species, good && delivery.species ? delivery.species : "–");
      put(energy, good && delivery.energy_mev_u !== null ? `${figure(delivery.energy_mev_u, 1)} MeV/u` : "–");
      put(
        layer,
        good && beam && delivery.layer !== null ? `${store.layerNumber(beam) ?? "–"} of ${store.layerCount(beam)}` : "–",
      );
      put(spill, good && delivery.spill !== null ? delivery.spill : "–");
      put(held, good && delivery.held_why ? `held: ${delivery.held_why}` : "");
    },
  };
}

function lamp(name, what, tone = "ready") {
  const picture = sign("off");
  const word = h("span", { class: "lamp-word" });
  const element = h("li", { class: "lamp", title: what }, picture, h("span", { class: "lamp-name" }, name), word);
  return {
    element,
    update(on, good) {
      mark(element, "data-tone", !good ? "unknown" : on ? tone : "off");
      picture.as(!good ? "unknown" : on ? (tone === "beam" ? "rays" : "on") : "off");
      put(word, !good ? "–" : on ? (tone === "beam" ? "on" : "yes") : tone === "beam" ? "off" : "no");
    },
  };
}
