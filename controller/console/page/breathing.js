/** The breathing surrogate as a trace, with the time in which the gate was open as a band under it. */

import { h, mark, panel, put, sign } from "./dom.js";
import { ink, surfaceOf } from "./surface.js";
import { figure } from "./words.js";

const SPAN_S = 24; // of the room's time, times its speed

export function breathingPanel() {
  const canvas = h("canvas", { class: "breath-canvas", role: "img" });
  const lamp = sign("off"), word = h("span", {});
  const gate = h("span", { class: "chip" }, lamp, " ", word);
  const value = h("span", { class: "soft number breath-value" });
  const element = panel("Breathing", { class: "breathing" }, canvas);
  element.querySelector("h2").append(" ", gate, " ", h("div", { class: "breath-place" }, value));
  let shown = null; // what the trace was drawn of
  const surface = surfaceOf(canvas, () => shown && draw(surface(), shown));
  return {
    element,
    update(store, good) {
      const { delivery, speed } = store.view;
      const known = good && delivery.gate_open !== null;
      lamp.as(!known ? "unknown" : delivery.gate_open ? "on" : "off");
      put(word, known ? (delivery.gate_open ? "gate open" : "gate shut") : "gate –");
      mark(gate, "data-tone", known && delivery.gate_open ? "ready" : null);
      put(
        value,
        good && delivery.breathing !== null ? `${figure(delivery.breathing, 1)} ${delivery.breathing_unit}` : delivery.breathing === null ? "no signal" : "–",
      );
      mark(canvas, "aria-label", known ? `breathing trace, gate ${delivery.gate_open ? "open" : "shut"}` : "breathing trace, no value");
      const now = store.view.t_ns / 1e9;
      if (shown?.now === now && shown.good === good) return;
      const span = SPAN_S * Math.min(speed, 4);
      const still = shown !== null && shown.samples.length === 0; // no signal: nothing moves
      shown = { samples: store.breath.filter((sample) => sample.t > now - span), span, good, now };
      if (!still || shown.samples.length) draw(surface(), shown);
    },
  };
}

function draw(screen, { samples: seen, span, good, now }) {
  if (screen === null) return;
  const { pen, width, height, rem } = screen;
  const band = 0.5 * rem;
  pen.strokeStyle = ink("line");
  pen.lineWidth = 1;
  pen.strokeRect(0.5, height - band - 0.5, width - 1, band);
  if (seen.length < 2) return;
  let [low, high] = [Infinity, -Infinity];
  for (const { value } of seen) [low, high] = [Math.min(low, value), Math.max(high, value)];
  if (high - low < 1e-6) [low, high] = [low - 1, high + 1];
  const x = (t) => width * (1 - (now - t) / span);
  const y = (value) => 0.3 * rem + (height - band - 0.9 * rem) * (1 - (value - low) / (high - low));
  pen.globalAlpha = good ? 1 : 0.35;
  for (const [begun, ended] of openings(seen)) {
    const [from, to] = [x(begun), x(ended)];
    pen.fillStyle = ink("gate-sheet");
    pen.fillRect(from, 0, to - from, height - band);
    pen.fillStyle = ink("ready");
    pen.fillRect(from, height - band, to - from, band);
  }
  pen.strokeStyle = ink("ink");
  pen.lineWidth = Math.max(1.4, 0.11 * rem);
  pen.lineJoin = "round";
  pen.beginPath();
  seen.forEach(({ t, value }, index) => (index === 0 ? pen.moveTo(x(t), y(value)) : pen.lineTo(x(t), y(value))));
  pen.stroke();
  pen.globalAlpha = 1;
}

/** From when to when the gate was open, as far as the samples tell. */
function openings(seen) {
  const spans = [];
  for (let i = 1; i < seen.length; i += 1) {
    if (!seen[i].gate) continue;
    if (seen[i - 1].gate && spans.length) spans.at(-1)[1] = seen[i].t;
    else spans.push([seen[i - 1].t, seen[i].t]);
  }
  return spans;
}
