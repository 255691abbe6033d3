/** The gantry as a dial (IEC 61217: 0° from the ceiling, clockwise), with target, limits, what may not be reached, and motion. */

import { h, mark, panel, put, s, show } from "./dom.js";
import { underWay } from "./store.js";
import { figure } from "./words.js";

const R = 84; // of the ring, in a picture of 240 x 240 around the isocentre

const at = (deg, radius) => {
  const turn = ((deg - 90) * Math.PI) / 180;
  return [radius * Math.cos(turn), radius * Math.sin(turn)];
};
const point = (deg, radius) => at(deg, radius).map((v) => v.toFixed(2)).join(" ");

/** An arc from one angle to another the way the gantry goes: through 0°, never through the stop. */
function arc(from, to, radius) {
  const span = Math.abs(to - from);
  if (span >= 359.9) return `M ${point(0, radius)} A ${radius} ${radius} 0 1 1 ${point(180, radius)} A ${radius} ${radius} 0 1 1 ${point(0, radius)}`;
  return `M ${point(from, radius)} A ${radius} ${radius} 0 ${span > 180 ? 1 : 0} ${to > from ? 1 : 0} ${point(to, radius)}`;
}

function scale() {
  const marks = [];
  for (let deg = 0; deg < 360; deg += 10) {
    const long = deg % 30 === 0;
    const [[x1, y1], [x2, y2]] = [at(deg, R + 5), at(deg, R + (long ? 12 : 8))];
    marks.push(s("line", { x1, y1, x2, y2, class: long ? "tick long" : "tick" }));
    if (long) {
      const [x, y] = at(deg, R + 24);
      marks.push(s("text", { x, y, class: "tick-label" }, String(deg > 180 ? deg - 360 : deg).replace("-", "−")));
    }
  }
  return marks;
}

export function gantryDial(jog) {
  const forbidden = s("path", { class: "forbidden" });
  const way = s("path", { class: "way" });
  const limits = [s("path", { class: "limit" }), s("path", { class: "limit" })];
  const target = s("path", { class: "target", d: "M 0 -92 L 7 -100 L -7 -100 Z" });
  const beam = s("line", { class: "beam", x1: 0, y1: -58, x2: 0, y2: 0 });
  const head = s(
    "g", { class: "head" },
    s("path", { d: "M -17 -90 L 17 -90 L 12 -68 L 5 -68 L 3 -58 L -3 -58 L -5 -68 L -12 -68 Z" }), beam,
  );
  const turning = s("path", { class: "turning" });
  const picture = s(
    "svg", { class: "dial", viewBox: "-116 -116 232 232", role: "img" },
    s("circle", { r: R, class: "ring" }), forbidden, way, ...scale(), ...limits,
    s("path", { class: "couch", d: "M -34 13 H 34 L 28 19 H -28 Z" }), s("ellipse", { class: "patient", cx: 0, cy: 3, rx: 26, ry: 9.5 }),
    s("path", { class: "isocentre", d: "M -6 0 H 6 M 0 -6 V 6" }), target, head, turning,
  );
  const angle = h("output", { class: "big number" });
  const aim = h("dd"), speed = h("dd"), torque = h("dd"), range = h("dd");
  const goes = h("span", { class: "chip" });
  const facts = h(
    "dl", { class: "facts" },
    h("div", {}, h("dt", {}, "Target"), aim), h("div", {}, h("dt", {}, "Speed"), speed),
    h("div", {}, h("dt", {}, "Torque"), torque), h("div", {}, h("dt", {}, "Limits"), range),
  );
  const handle = jog("gantry");
  const element = panel(
    "Gantry", { class: "gantry" }, picture,
    h("div", { class: "gantry-side" }, h("div", { class: "gantry-angle" }, angle, goes), facts, handle.element),
  );

  return {
    element,
    update(view, good) {
      const ring = view.gantry;
      const fixed = ring.fixed_deg !== null && ring.fixed_deg !== undefined;
      const sound = good && ring.quality === "good" && (fixed || ring.angle_deg !== null);
      const deg = fixed ? ring.fixed_deg : ring.angle_deg;
      mark(element, "data-unsound", !sound);
      put(angle, sound ? `${figure(deg, 1)}°` : "–");
      mark(head, "transform", `rotate(${(deg ?? 0).toFixed(1)})`); // as the number beside it: an encoder is never quite still
      mark(head, "class", `head${sound ? "" : " unsound"}`);
      mark(beam, "class", view.delivery.beam_present ? "beam on" : "beam");
      const { lower_deg: lower, upper_deg: upper } = ring;
      const aimed = ring.moving || underWay(view.treatment) ? ring.target_deg : null; // where a jog would have ended is no target any more
      const off = !fixed && sound && aimed !== null && Math.abs(aimed - deg) >= 0.1;
      show(way, off);
      if (off) mark(way, "d", arc(deg, aimed, R));
      show(target, aimed !== null && !fixed);
      if (aimed !== null) mark(target, "transform", `rotate(${aimed})`);
      const open = upper - lower < 359.9 && !fixed;
      show(forbidden, open);
      if (open) mark(forbidden, "d", arc(upper, lower + 360, R));
      [lower, upper].forEach((limit, index) => {
        show(limits[index], !fixed);
        mark(limits[index], "d", `M ${point(limit, R - 7)} L ${point(limit, R + 15)}`);
      });
      const moving = ring.moving && sound && !fixed;
      show(turning, moving);
      const clockwise = (ring.speed_deg_s ?? (aimed ?? deg) - deg) >= 0;
      if (moving) mark(turning, "d", clockwise ? turn(deg, 1) : turn(deg, -1));
      put(goes, fixed ? "fixed port" : !sound ? "not known" : moving ? (clockwise ? "turning ↻" : "turning ↺") : "standing still");
      mark(goes, "data-tone", moving ? "warn" : sound ? null : "bad");
      put(aim, aimed === null || fixed ? "–" : `${figure(aimed, 1)}°`);
      put(speed, fixed ? "–" : sound && ring.speed_deg_s !== null ? `${figure(Math.abs(ring.speed_deg_s), 2)} °/s` : "–");
      put(torque, fixed ? "none" : ring.enabled === null || !good ? "–" : ring.enabled ? "on" : "off");
      put(range, fixed ? "–" : lower === -upper ? `±${figure(upper, 0)}°` : `${figure(lower, 0)}° to ${figure(upper, 0)}°`);
      mark(
        picture, "aria-label",
        `Gantry ${sound ? `${figure(deg, 1)} degrees` : "angle not known"}${aimed === null ? "" : `, target ${figure(aimed, 1)} degrees`}`,
      );
      handle.update(view, good);
    },
  };
}

function turn(deg, way) {
  const [from, to] = [deg + way * 13, deg + way * 30];
  const tip = point(to + way * 5, 75), inner = point(to, 69), outer = point(to, 81);
  return `M ${point(from, 75)} A 75 75 0 0 ${way > 0 ? 1 : 0} ${point(to, 75)} M ${tip} L ${inner} L ${outer} Z`;
}
