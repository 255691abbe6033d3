/** The spot map at isocentre: planned rings, delivered discs, squares given by earlier sessions. Too little and too much have a shape of their own, not only a colour. */

import { h, mark, panel, put, show, sign } from "./dom.js";
import { figure } from "./words.js";
import { layerLadder } from "./ladder.js";
import { currentBeam } from "./store.js";
import { ink, surfaceOf } from "./surface.js";

const OFF = 0.03; // of the planned meterset: from here a spot is shown as off plan
const ALL = "all";

/** `again()`: another layer was chosen and is to be shown at once. */
export function spotMap(again) {
  const canvas = h("canvas", { class: "spots-canvas", role: "img" });
  const title = h("span", { class: "soft spots-title" });
  const ladder = layerLadder((index) => {
    chosen = index;
    again();
  });
  const legend = h(
    "div", { class: "legend" },
    ...[
      ["planned", "planned"], ["delivered", "delivered"], ["under", "too little"], ["over", "too much"], ["before", "given before"],
    ].map(([name, words]) => h("span", {}, sign(`spot-${name}`), words)),
  );
  const element = panel(
    "Spots", { class: "spots" },
    h("div", { class: "spots-body" }, h("div", { class: "spots-map" }, canvas, legend), ladder.element),
  );
  element.querySelector("h2").append(" ", title);
  let chosen = null; // null follows the beam
  let drawn = null; // what the map was drawn of
  const surface = surfaceOf(canvas, () => drawn && draw(surface(), drawn));

  return {
    element,
    update(store, good) {
      const beam = currentBeam(store.view.treatment);
      const layers = beam ? store.layersOf(beam.number) : [];
      const latest = layers.findLast((layer) => layer.own)?.index ?? null;
      if (chosen !== null && chosen !== ALL && !layers.some((layer) => layer.index === chosen)) chosen = null;
      const shown = chosen === ALL ? layers : layers.filter((layer) => layer.index === (chosen ?? latest));
      ladder.update(store, beam, layers, latest, chosen, good);
      show(legend.lastChild, layers.some((layer) => layer.before > 0));
      const layer = shown.length === 1 ? shown[0] : null;
      const where = layer && [`layer ${layer.index + 1} of ${store.layerCount(beam)}`, `${figure(layer.energy, 1)} MeV/u`, layer.own ? "" : "given before"];
      put(title, (chosen === ALL ? ["all layers so far"] : where ?? []).filter(Boolean).join(", "));
      const stamp = `${store.spotsVersion} ${beam?.number} ${chosen ?? latest} ${good}`;
      if (stamp === drawn?.stamp) return;
      drawn = { stamp, spots: gather(shown), span: extent(layers), good };
      const tally = tallyOf(drawn.spots);
      draw(surface(), drawn);
      mark(
        canvas, "aria-label",
        `${tally.spots} spots planned, ${tally.delivered} delivered, ${tally.under} with too little, ${tally.over} with too much${tally.before ? `, ${tally.before} given before` : ""}`,
      );
    },
  };
}

const isOver = ({ part }) => part > 1 + OFF;
const isUnder = ({ part, planned, delivered, complete }) => complete && part < 1 - OFF && (delivered > 0 || planned > 0);

function tallyOf(spots) {
  const number = (is) => spots.reduce((total, spot) => total + Number(is(spot)), 0);
  return {
    spots: number((spot) => spot.planned > 0), delivered: number((spot) => spot.delivered > 0), under: number(isUnder), over: number(isOver),
    before: number((spot) => spot.before > 0),
  };
}

/** All marks of one kind are one path: a thousand spots are a few strokes of the pen. */
function draw(screen, { spots, span, good }) {
  if (screen === null) return;
  const { pen, width, height, rem } = screen;
  const size = Math.min(width, height) - 2.2 * rem;
  const [left, top] = [(width - size) / 2 + 0.8 * rem, (height - size) / 2 - 0.4 * rem];
  const x = (mm) => left + (size * (mm + span)) / (2 * span);
  const y = (mm) => top + (size * (span - mm)) / (2 * span);
  grid(pen, { x, y, span, rem, left, top, size });
  if (!spots.length) {
    pen.fillStyle = ink("soft");
    pen.textAlign = "center";
    pen.fillText("spots are shown from the first layer on", left + size / 2, top + size / 2 - rem);
    return;
  }
  const most = spots.reduce((so, spot) => Math.max(so, spot.planned, spot.before), 1e-9);
  const widest = Math.max(2.2, Math.min(0.62 * rem, (size / (2 * span)) * spacing(spots) * 0.5));
  const [over, under, given, planned, before] = Array.from({ length: 5 }, () => new Path2D());
  for (const spot of spots) {
    const [px, py] = [x(spot.x), y(spot.y)];
    const radius = widest * Math.max(0.35, Math.sqrt(Math.max(spot.planned, spot.before) / most));
    if (spot.before > 0) square(before, px, py, radius * 0.7);
    if (!spot.planned && !spot.delivered) continue; // nothing of this session
    if (isOver(spot)) cross(over, px, py, radius * 1.15);
    else if (isUnder(spot)) wedge(under, px, py, radius * 1.1);
    else if (spot.delivered > 0) disc(given, px, py, radius * Math.sqrt(Math.min(1, spot.part)));
    if (spot.delivered <= 0 || spot.part < 1 - OFF) disc(planned, px, py, radius);
  }
  pen.globalAlpha = good ? 1 : 0.35;
  pen.fillStyle = ink("spot-before");
  pen.fill(before);
  pen.fillStyle = ink("spot-delivered");
  pen.fill(given);
  pen.fillStyle = ink("spot-under");
  pen.fill(under);
  pen.lineWidth = Math.max(1, rem * 0.08);
  pen.strokeStyle = ink("spot-planned");
  pen.stroke(planned);
  pen.lineWidth *= 1.8;
  pen.strokeStyle = ink("spot-over");
  pen.stroke(over);
  pen.globalAlpha = 1;
}

/** Paintings of a layer share spots: one mark per place. `part`: of what was planned for it. */
function gather(layers) {
  const places = new Map();
  const at = (x, y) => {
    const key = Math.round(x * 100) * 1e6 + Math.round(y * 100); // a place, to a hundredth of a millimetre
    let spot = places.get(key);
    if (spot === undefined) places.set(key, (spot = { x, y, planned: 0, delivered: 0, before: 0, complete: true }));
    return spot;
  };
  for (const { parts, earlier } of layers) {
    for (const part of earlier) {
      for (let i = 0; i < part.x_mm.length; i += 1) if (part.mu_delivered[i] > 0) at(part.x_mm[i], part.y_mm[i]).before += part.mu_delivered[i];
    }
    for (const part of parts) {
      for (let i = 0; i < part.x_mm.length; i += 1) {
        const spot = at(part.x_mm[i], part.y_mm[i]);
        spot.planned += part.mu_planned[i];
        spot.delivered += part.mu_delivered[i];
        spot.complete &&= part.complete;
      }
    }
  }
  const spots = [...places.values()];
  for (const spot of spots) spot.part = spot.planned > 0 ? spot.delivered / spot.planned : spot.delivered > 0 ? 2 : 1;
  return spots;
}

/** Half the field that is shown: the same for all layers of a beam, in round steps. */
function extent(layers) {
  let most = 0;
  for (const { parts, earlier } of layers) for (const part of [...parts, ...earlier]) for (const list of [part.x_mm, part.y_mm]) for (const mm of list) most = Math.max(most, Math.abs(mm));
  for (const step of [20, 30, 40, 50, 60, 80, 100]) if (most * 1.12 <= step) return step;
  return Math.max(120, Math.ceil((most * 1.1) / 20) * 20);
}

/** Smallest distance between neighbours along an axis, mm. */
function spacing(spots) {
  const xs = [...new Set(spots.map((spot) => spot.x))].sort((a, b) => a - b);
  let least = Infinity;
  for (let i = 1; i < xs.length; i += 1) if (xs[i] - xs[i - 1] > 0.2) least = Math.min(least, xs[i] - xs[i - 1]);
  return Number.isFinite(least) ? least : 6;
}

function grid(pen, { x, y, span, rem, left, top, size }) {
  const step = span <= 30 ? 10 : span <= 60 ? 20 : span <= 100 ? 50 : 100;
  pen.lineWidth = 1;
  pen.font = `${0.72 * rem}px "DejaVu Sans", system-ui, sans-serif`;
  pen.textBaseline = "middle";
  pen.fillStyle = ink("soft");
  pen.strokeStyle = ink("line");
  for (let mm = -Math.floor(span / step) * step; mm <= span; mm += step) {
    pen.globalAlpha = mm === 0 ? 1 : 0.55;
    pen.beginPath();
    line(pen, x(mm), top, x(mm), top + size);
    line(pen, left, y(mm), left + size, y(mm));
    pen.stroke();
    pen.globalAlpha = 1;
    pen.textAlign = "center";
    pen.fillText(figure(mm, 0), x(mm), top + size + 0.75 * rem);
    pen.textAlign = "right";
    pen.fillText(figure(mm, 0), left - 0.35 * rem, y(mm));
  }
  pen.textAlign = "left";
  pen.fillText("mm", left + size + 0.9 * rem, top + size + 0.75 * rem);
}

function line(path, x1, y1, x2, y2) {
  path.moveTo(x1, y1);
  path.lineTo(x2, y2);
}

function disc(path, x, y, radius) {
  path.moveTo(x + radius, y);
  path.arc(x, y, radius, 0, 2 * Math.PI);
}

function square(path, x, y, radius) {
  path.rect(x - radius, y - radius, 2 * radius, 2 * radius);
}

function cross(path, x, y, radius) {
  line(path, x - radius, y - radius, x + radius, y + radius);
  line(path, x - radius, y + radius, x + radius, y - radius);
}

function wedge(path, x, y, radius) {
  path.moveTo(x - radius, y - radius * 0.7);
  path.lineTo(x + radius, y - radius * 0.7);
  path.lineTo(x, y + radius * 0.9);
  path.closePath();
}
