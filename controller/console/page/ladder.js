/** The layers of a beam from the highest energy down: a bar each, planned and delivered; choose one to see its spots. */

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
  const follow = h("button", { type: "button", class: "small", on: { click: () => choose(null) } }, "Follow beam");
  const all = h("button", { type: "button", class: "small", on: { click: () => choose("all") } }, "All");
  const element = h(
    "div", { class: "ladder" }, h("div", { class: "ladder-head" }, h("span", { class: "soft" }, "Layers"), now), list,
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
    update(beam, layers, chosen, delivery, good) {
      total = beam?.layers ?? 0;
      known = layers.map((layer) => layer.index);
      shown = typeof chosen === "number" ? chosen : known.at(-1) ?? null;
      const most = Math.max(...layers.map((layer) => Math.max(layer.planned, layer.delivered)), 1e-9);
      const byIndex = new Map(layers.map((layer) => [layer.index, layer]));
      mark(picture, "viewBox", `0 0 ${WIDTH} ${Math.max(total, 1)}`);
      picture.style.maxHeight = `${1.5 * total}rem`; // few layers are thin bars too
      keyed(bars, Array.from({ length: total }, (_, index) => index), (index) => index, makeBar, (bar, index) => {
        const layer = byIndex.get(index);
        bar.update(index, layer, most, index === shown && chosen !== "all", beam.layer - 1 === index && delivery.layer !== null);
      });
      const layer = shown === null ? null : byIndex.get(shown);
      put(now, total ? `${good ? Math.min(beam.layer, total) : "–"} of ${total}` : "–");
      mark(list, "aria-valuemax", String(total || 1));
      mark(list, "aria-valuenow", String((shown ?? 0) + 1));
      mark(
        list, "aria-valuetext",
        layer ? `layer ${layer.index + 1}, ${figure(layer.energy, 1)} MeV/u, ${percent(layer.delivered, layer.planned, layer.complete)} delivered` : "no layer yet",
      );
      mark(follow, "aria-pressed", String(chosen === null));
      mark(all, "aria-pressed", String(chosen === "all"));
      show(element.lastChild, total > 0);
    },
  };
}

function makeBar(index) {
  const space = s("rect", { class: "bar-space", x: 0, y: index + 0.17, width: WIDTH, height: 0.66 });
  const planned = s("rect", { class: "bar-planned", x: 0, y: index + 0.17, width: 0, height: 0.66 });
  const delivered = s("rect", { class: "bar-delivered", x: 0, y: index + 0.17, width: 0, height: 0.66 });
  const bar = s("g", { class: "bar" }, space, planned, delivered);
  bar.update = (_, layer, most, shown, current) => {
    mark(planned, "width", layer ? ((WIDTH * layer.planned) / most).toFixed(2) : 0);
    mark(delivered, "width", layer ? ((WIDTH * Math.min(layer.delivered, most)) / most).toFixed(2) : 0);
    mark(bar, "class", `bar${shown ? " shown" : ""}${current ? " current" : ""}${layer ? "" : " to-come"}`);
  };
  return bar;
}
