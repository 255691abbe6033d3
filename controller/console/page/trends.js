/** Trend plots of archived signals: up to four, each with the span between its least and greatest value, gaps where nothing is known. */

import { h, keyed, mark, panel, put, show } from "./dom.js";
import { label } from "./interlocks.js";
import { ink, surfaceOf } from "./surface.js";

const SPANS = [["10 min", 600], ["1 h", 3600], ["8 h", 28800], ["24 h", 86400], ["7 days", 604800]];
const MOST = 4;
const AGAIN_MS = 4000;

export function trendPage(desk) {
  const search = h(
    "input",
    { type: "search", placeholder: "Find a signal", "aria-label": "Find a signal", spellcheck: "false", autocomplete: "off" },
  );
  const list = h("ul", { class: "choices signals" });
  const none = h("p", { class: "soft" }, "The archive holds no signal yet.");
  const span = h("select", {}, ...SPANS.map(([words, seconds]) => h("option", { value: String(seconds) }, words)));
  const plots = h("div", { class: "plots" });
  const hint = h("p", { class: "soft" }, "Choose up to four signals.");
  const element = h(
    "div", { class: "page two narrow" },
    panel("Signals", { class: "scrolling" }, search, h("div", { class: "scroll" }, none, list)),
    panel("Trends", { class: "scrolling" }, h("div", { class: "row" }, label("Last", span)), hint, plots),
  );
  let signals = [];
  let room = null;
  const chosen = [];

  async function load() {
    room = desk.room();
    if (room === null) return;
    const answer = await desk.ask(`/api/history/signals?room=${encodeURIComponent(room)}`);
    if (answer === null) return;
    signals = (answer.signals ?? answer).filter((signal) => (signal.room ?? room) === room && signal.kind !== "text");
    draw();
    await plot();
  }
  function draw() {
    const words = search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    show(none, signals.length === 0);
    const found = signals.filter((one) => words.every((word) => one.signal.toLowerCase().includes(word)));
    keyed(
      list, found, (one) => one.signal, (one) => makeChoice(() => toggle(one.signal)),
      (row, one) => row.update(one, chosen.includes(one.signal)),
    );
    show(hint, chosen.length === 0);
  }
  function toggle(signal) {
    const place = chosen.indexOf(signal);
    if (place >= 0) chosen.splice(place, 1);
    else chosen.push(signal);
    if (chosen.length > MOST) chosen.shift();
    draw();
    plot();
  }
  async function plot() {
    const to = new Date();
    const from = new Date(to - Number(span.value) * 1000);
    const asked = chosen.map((signal) => {
      const query = new URLSearchParams({ room, signal, from_utc: from.toISOString(), to_utc: to.toISOString(), points: "600" });
      return desk.ask(`/api/history?${query}`);
    });
    const answers = (await Promise.all(asked)).filter(Boolean);
    keyed(plots, answers, (one) => one.signal, makePlot, (figure, one) => figure.update(one, from.getTime(), to.getTime()));
  }
  search.addEventListener("input", draw);
  span.addEventListener("change", plot);
  return { element, enter: load, every: AGAIN_MS, update() {} };
}

function makeChoice(choose) {
  const name = h("span", {}), unit = h("span", { class: "soft" });
  const button = h("button", { type: "button", class: "choice one-line", on: { click: choose } }, name, unit);
  const row = h("li", {}, button);
  row.update = (signal, chosen) => {
    put(name, signal.signal);
    put(unit, signal.unit);
    mark(button, "aria-pressed", String(chosen));
  };
  return row;
}

function makePlot() {
  const title = h("figcaption", {});
  const canvas = h("canvas", { class: "plot-canvas", role: "img" });
  const figure = h("figure", { class: "plot" }, title, canvas);
  let shown = null;
  const surface = surfaceOf(canvas, () => shown && draw(surface(), ...shown));
  figure.update = (history, from, to) => {
    const known = history.last.filter((value) => value !== null);
    const last = known.at(-1);
    const words = `${history.signal}${history.unit ? `, ${history.unit}` : ""}`;
    const [least, most] = [Math.min(...history.min.filter(isKnown)), Math.max(...history.max.filter(isKnown))];
    const values = last === undefined ? "nothing known" : `last ${short(last)}, from ${short(least)} to ${short(most)}`;
    put(title, `${words}: ${values}${history.simulated ? " (simulated)" : ""}`);
    mark(canvas, "aria-label", title.textContent);
    shown = [history, from, to];
    draw(surface(), ...shown);
  };
  return figure;
}

const isKnown = (value) => value !== null;
const short = (value) => String(Number(value.toPrecision(5))).replace("-", "−");

function draw(screen, history, from, to) {
  if (screen === null) return;
  const { pen, width, height, rem } = screen;
  const box = { left: 4.2 * rem, top: 0.5 * rem, right: width - 0.6 * rem, bottom: height - 1.5 * rem };
  const low0 = Math.min(...history.min.filter(isKnown)), high0 = Math.max(...history.max.filter(isKnown));
  if (!Number.isFinite(low0)) return;
  const margin = Math.max((high0 - low0) * 0.08, Math.abs(high0) * 1e-3, 1e-9);
  const [low, high] = [low0 - margin, high0 + margin];
  const x = (t) => box.left + ((box.right - box.left) * (t - from)) / (to - from);
  const y = (value) => box.bottom - ((box.bottom - box.top) * (value - low)) / (high - low);
  pen.font = `${0.72 * rem}px "DejaVu Sans", system-ui, sans-serif`;
  pen.fillStyle = ink("soft");
  pen.strokeStyle = ink("line");
  pen.lineWidth = 1;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (const part of [0, 0.5, 1]) {
    const value = low0 + (high0 - low0) * part;
    stroke(pen, [[box.left, y(value)], [box.right, y(value)]]);
    pen.fillText(short(value), box.left - 0.5 * rem, y(value));
    if (high0 === low0) break;
  }
  pen.textAlign = "center";
  for (const part of [0, 0.25, 0.5, 0.75, 1]) {
    const at = from + (to - from) * part;
    const clock = new Date(at).toISOString().slice(11, to - from > 3.6e6 ? 16 : 19);
    pen.fillText(clock, Math.min(Math.max(x(at), box.left + rem), box.right - 1.8 * rem), box.bottom + 0.85 * rem);
  }
  pen.strokeStyle = ink("accent");
  pen.fillStyle = ink("accent");
  pen.lineWidth = Math.max(1.4, 0.1 * rem);
  let run = [];
  const times = [...history.t_ms, to];
  const finish = () => {
    if (run.length > 1) stroke(pen, run);
    run = [];
  };
  history.last.forEach((value, i) => {
    if (value === null) return finish();
    const [x1, x2] = [Math.max(x(times[i]), box.left), Math.min(x(times[i + 1]), box.right)];
    run.push([x1, y(value)], [x2, y(value)]); // a value holds until the next one
    if (history.min[i] !== null && history.max[i] !== history.min[i]) pen.fillRect(
      x1, y(history.max[i]), Math.max(1, x2 - x1), y(history.min[i]) - y(history.max[i]),
    );
  });
  finish();
}

function stroke(pen, points) {
  pen.beginPath();
  points.forEach(([px, py], index) => (index ? pen.lineTo(px, py) : pen.moveTo(px, py)));
  pen.stroke();
}
