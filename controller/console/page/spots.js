/** The spot map at isocentre: planned rings, delivered discs. Too little and too much have a shape of their own, not only a colour. */

import { canvasOf, h, ink, mark, panel, put, sign } from "./dom.js";
import { figure } from "./words.js";
import { layerLadder } from "./ladder.js";
import { currentBeam } from "./store.js";

const OFF = 0.03; // of the planned meterset: from here a spot is shown as off plan
const ALL = "all";

export function spotMap() {
  const canvas = h("canvas", { class: "spots-canvas", role: "img" });
  const title = h("span", { class: "soft spots-title" });
  const ladder = layerLadder((index) => ((chosen = index), (drawn = null)));
  const legend = h(
    "div", { class: "legend" },
    ...[
      ["planned", "planned"], ["delivered", "delivered"], ["under", "too little"], ["over", "too much"],
    ].map(([name, words]) => h("span", {}, sign(`spot-${name}`), words)),
  );
  const element = panel(
    "Spots", { class: "spots" },
    h("div", { class: "spots-body" }, h("div", { class: "spots-map" }, canvas, legend), ladder.element),
  );
  element.querySelector("h2").append(" ", title);
  let chosen = null; // null follows the beam
  let drawn = null;
  new ResizeObserver(() => (drawn = null)).observe(canvas);

  return {
    element,
    update(store, good) {
      const beam = currentBeam(store.view.treatment);
      const layers = beam ? store.layersOf(beam.number) : [];
      const latest = layers.length ? layers.at(-1).index : null;
      if (chosen !== null && chosen !== ALL && !layers.some((layer) => layer.index === chosen)) chosen = null;
      const shown = chosen === ALL ? layers : layers.filter((layer) => layer.index === (chosen ?? latest));
      ladder.update(beam, layers, chosen, store.view.delivery, good);
      const layer = shown.length === 1 ? shown[0] : null;
      put(
        title,
        chosen === ALL ? "all layers so far" : layer ? `layer ${layer.index + 1} of ${beam.layers}, ${figure(layer.energy, 1)} MeV/u` : "",
      );
      const stamp = `${store.spotsVersion} ${beam?.number} ${chosen ?? latest} ${good}`;
      if (stamp === drawn && canvas.width) return;
      const tally = draw(canvas, shown, layers, good);
      if (tally === null) return;
      drawn = stamp;
      mark(
        canvas, "aria-label",
        `${tally.spots} spots planned, ${tally.delivered} delivered, ${tally.under} with too little, ${tally.over} with too much`,
      );
    },
  };
}

function draw(canvas, shown, all, good) {
  const screen = canvasOf(canvas);
  if (screen === null) return null;
  const { pen, width, height, rem } = screen;
  const colours = {
    grid: ink("line"), soft: ink("soft"), planned: ink("spot-planned"), delivered: ink("spot-delivered"),
    under: ink("spot-under"), over: ink("spot-over"),
  };
  const span = extent(all);
  const size = Math.min(width, height) - 2.2 * rem;
  const [left, top] = [(width - size) / 2 + 0.8 * rem, (height - size) / 2 - 0.4 * rem];
  const x = (mm) => left + (size * (mm + span)) / (2 * span);
  const y = (mm) => top + (size * (span - mm)) / (2 * span);
  grid(pen, { x, y, span, rem, colours, left, top, size });
  const tally = { spots: 0, delivered: 0, under: 0, over: 0 };
  const spots = gather(shown);
  if (!spots.length) {
    pen.fillStyle = colours.soft;
    pen.textAlign = "center";
    pen.fillText("spots are shown from the first layer on", left + size / 2, top + size / 2 - rem);
    return tally;
  }
  const most = Math.max(...spots.map((spot) => spot.planned), 1e-9);
  const widest = Math.max(2.2, Math.min(0.62 * rem, (size / (2 * span)) * spacing(spots) * 0.5));
  pen.globalAlpha = good ? 1 : 0.35;
  for (const spot of spots) {
    const [px, py] = [x(spot.x), y(spot.y)];
    const radius = widest * Math.max(0.35, Math.sqrt(spot.planned / most));
    tally.spots += 1;
    const given = spot.delivered > 0;
    if (given) tally.delivered += 1;
    const part = spot.planned > 0 ? spot.delivered / spot.planned : given ? 2 : 1;
    const over = part > 1 + OFF;
    const under = given && spot.complete && part < 1 - OFF;
    pen.lineWidth = Math.max(1, rem * 0.08);
    if (over) {
      tally.over += 1;
      pen.strokeStyle = colours.over;
      pen.lineWidth *= 1.8;
      cross(pen, px, py, radius * 1.15);
    } else if (under || (spot.complete && !given && spot.planned > 0)) {
      tally.under += 1;
      pen.fillStyle = colours.under;
      wedge(pen, px, py, radius * 1.1);
    } else if (given) {
      pen.fillStyle = colours.delivered;
      disc(pen, px, py, radius * Math.sqrt(Math.min(1, part)));
      pen.fill();
    }
    if (!given || part < 1 - OFF) {
      pen.strokeStyle = colours.planned;
      disc(pen, px, py, radius);
      pen.stroke();
    }
  }
  pen.globalAlpha = 1;
  return tally;
}

/** Paintings of a layer share spots: one mark per place. */
function gather(layers) {
  const places = new Map();
  for (const { parts } of layers) {
    for (const part of parts) {
      for (let i = 0; i < part.x_mm.length; i += 1) {
        const key = `${part.x_mm[i].toFixed(2)} ${part.y_mm[i].toFixed(2)}`;
        const spot = places.get(key) ?? { x: part.x_mm[i], y: part.y_mm[i], planned: 0, delivered: 0, complete: true };
        spot.planned += part.mu_planned[i];
        spot.delivered += part.mu_delivered[i];
        spot.complete &&= part.complete;
        places.set(key, spot);
      }
    }
  }
  return [...places.values()];
}

/** Half the field that is shown: the same for all layers of a beam, in round steps. */
function extent(layers) {
  let most = 0;
  for (const { parts } of layers) for (const part of parts) for (const list of [part.x_mm, part.y_mm]) for (const mm of list) most = Math.max(most, Math.abs(mm));
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

function grid(pen, { x, y, span, rem, colours, left, top, size }) {
  const step = span <= 30 ? 10 : span <= 60 ? 20 : span <= 100 ? 50 : 100;
  pen.lineWidth = 1;
  pen.font = `${0.72 * rem}px "DejaVu Sans", system-ui, sans-serif`;
  pen.textBaseline = "middle";
  pen.fillStyle = colours.soft;
  for (let mm = -Math.floor(span / step) * step; mm <= span; mm += step) {
    pen.strokeStyle = colours.grid;
    pen.globalAlpha = mm === 0 ? 1 : 0.55;
    line(pen, x(mm), top, x(mm), top + size);
    line(pen, left, y(mm), left + size, y(mm));
    pen.globalAlpha = 1;
    pen.textAlign = "center";
    pen.fillText(figure(mm, 0), x(mm), top + size + 0.75 * rem);
    pen.textAlign = "right";
    pen.fillText(figure(mm, 0), left - 0.35 * rem, y(mm));
  }
  pen.textAlign = "left";
  pen.fillText("mm", left + size + 0.9 * rem, top + size + 0.75 * rem);
}

function line(pen, x1, y1, x2, y2) {
  pen.beginPath();
  pen.moveTo(x1, y1);
  pen.lineTo(x2, y2);
  pen.stroke();
}

function disc(pen, x, y, radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
}

function cross(pen, x, y, radius) {
  line(pen, x - radius, y - radius, x + radius, y + radius);
  line(pen, x - radius, y + radius, x + radius, y - radius);
}

function wedge(pen, x, y, radius) {
  pen.beginPath();
  pen.moveTo(x - radius, y - radius * 0.7);
  pen.lineTo(x + radius, y - radius * 0.7);
  pen.lineTo(x, y + radius * 0.9);
  pen.closePath();
  pen.fill();
}
