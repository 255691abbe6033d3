/**
 * The layers of a beam from the highest energy down, as the plan counts them: a bar each with what is planned, what earlier sessions
 * gave, and what this one delivers; choose one to see its spots.
 */

import { h, keyed, mark, put, s, show } from "./dom.js";
import { figure, percent } from "./words.js";

const WIDTH = 100;

/** `choose(index)`: a layer, "all", or null to follow the beam. */
export function layerLadder(choose) {
  const bars = s("g", {});
  const picture = s("svg", { class: "ladder-bars", preserveAspectRatio: "none", "aria-hidden": "true" }, bars);
  const list = h(
    "div",
    {
      class: "ladder-list", role: "slider", tabindex: "0", "aria-label": "Layer shown", "aria-orientation": "vertical",
      "aria-valuemin": "1",
    },
    picture,
  );
  const now = h("output", { class: "ladder-now" });
  const legend = h(
    "p", { class: "soft ladder-legend" }, "length: meterset of the layer; filled: delivered; slim: given before; frame: shown, yellow: in beam",
  );
  const follow = h("button", { type: "button", class: "small", on: { click: () => choose(null) } }, "Follow beam");
  const all = h("button", { type: "button", class: "small", on: { click: () => choose("all") } }, "All");
  const element = h(
    "div", { class: "ladder" }, h("div", { class: "ladder-head" }, h("span", { class: "soft" }, "Layers"), now), list,
    legend,
    h("div", { class: "row" }, follow, all),
  );
  let known = []; // indices that can be chosen
  let total = 0;
  let shown = null;

  const step = (by) => {
    if (!known.length) return;
    const place = known.indexOf(shown ?? known.at(-1));
    choose(known[Math.max(0, Math.min(known.length - 1, place + by))]);
  };
  list.addEventListener("keydown", (event) => {
    const by = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    step(by);
  });
  list.addEventListener("click", (event) => {
    const box = picture.getBoundingClientRect();
    const index = Math.floor(((event.clientY - box.top) / box.height) * total);
    if (known.includes(index)) choose(index);
  });

  return {
    element,
    update(store, beam, layers, latest, chosen, good) {
      const { delivery } = store.view;
      total = beam ? store.layerCount(beam) : 0;
      known = layers.map((layer) => layer.index);
      shown = typeof chosen === "number" ? chosen : latest;
      const most = Math.max(...layers.map((layer) => Math.max(layer.whole, layer.before + layer.delivered)), 1e-9);
      const byIndex = new Map(layers.map((layer) => [layer.index, layer]));
      const number = beam ? store.layerNumber(beam) : null;
      mark(picture, "viewBox", `0 0 ${WIDTH} ${Math.max(total, 1)}`);
      picture.style.maxHeight = `${1.5 * total}rem`; // few layers are thin bars too
      keyed(bars, Array.from({ length: total }, (_, index) => index), (index) => index, makeBar, (bar, index) => {
        bar.update(byIndex.get(index), most, index === shown && chosen !== "all", number === index + 1 && delivery.layer !== null);
      });
      const layer = shown === null ? null : byIndex.get(shown);
      const none = store.view.treatment?.remainder ? "–" : 0;
      put(now, total ? `${good ? number ?? none : "–"} of ${total}` : "–");
      mark(list, "aria-valuemax", String(total || 1));
      mark(list, "aria-valuenow", String((shown ?? 0) + 1));
      mark(list, "aria-valuetext", layer ? wordsOf(layer) : "no layer yet");
      mark(follow, "aria-pressed", String(chosen === null));
      mark(all, "aria-pressed", String(chosen === "all"));
      for (const one of [legend, element.lastChild]) show(one, total > 0);
    },
  };
}

function wordsOf({ index, energy, own, planned, delivered, complete, before, whole }) {
  const words = [`layer ${index + 1}`, `${figure(energy, 1)} MeV/u`];
  if (own) words.push(`${percent(delivered, planned, complete)} delivered`);
  if (before > 0) words.push(`${percent(before, whole, complete && !own)} of the layer given before`);
  return words.join(", ");
}

function makeBar(index) {
  const y = index + 0.17;
  const space = s("rect", { class: "bar-space", x: 0, y, width: WIDTH, height: 0.66 });
  const planned = s("rect", { class: "bar-planned", x: 0, y, width: 0, height: 0.66 });
  const before = s("rect", { class: "bar-before", x: 0, y: index + 0.36, width: 0, height: 0.28 }); // slimmer: not of this session
  const delivered = s("rect", { class: "bar-delivered", x: 0, y, width: 0, height: 0.66 });
  const frame = s("rect", { class: "bar-frame", x: 0, y: index + 0.06, width: WIDTH, height: 0.88, "vector-effect": "non-scaling-stroke" });
  const bar = s("g", { class: "bar" }, space, planned, before, delivered, frame);
  bar.update = (layer, most, shown, current) => {
    const length = (meterset) => ((WIDTH * Math.min(meterset, most)) / most).toFixed(2);
    mark(planned, "width", layer ? length(layer.whole) : 0);
    mark(before, "width", layer ? length(layer.before) : 0);
    mark(delivered, "x", layer ? length(layer.before) : 0);
    mark(delivered, "width", layer ? length(layer.delivered) : 0);
    mark(bar, "class", `bar${shown ? " shown" : ""}${current ? " current" : ""}${layer ? "" : " to-come"}`);
  };
  return bar;
}
