/** Couch and nozzle: where each axis is on its way between its limits, and where it should be. */

import { h, keyed, mark, panel, put, s, show } from "./dom.js";
import { underWay } from "./store.js";
import { axisOf, figure, settingOf, spaced, unitOf } from "./words.js";

const IN_PLACE = { deg: 0.1, mm: 0.5 }; // for the sign only: the room itself judges what is in place

export function couchPanel(jog) {
  const rows = h("div", { class: "axes", role: "list" });
  const nozzle = h("dl", { class: "facts nozzle" });
  const handle = jog("couch");
  const element = panel("Couch and nozzle", { class: "couch-panel" }, rows, nozzle, handle.element);
  return {
    element,
    update(view, good) {
      keyed(rows, view.couch, (axis) => axis.name, makeAxis, (row, axis) => row.update(axis, good, underWay(view.treatment)));
      keyed(
        nozzle, Object.entries(view.nozzle), ([name]) => name, makeFact,
        (row, [, value]) => put(row.value, good ? settingOf(row.setting, value) : "–"),
      );
      handle.update(view, good);
    },
  };
}

function makeAxis() {
  const name = h("span", { class: "axis-name" });
  const value = h("output", { class: "number axis-value" });
  const unit = h("span", { class: "unit" });
  const here = s("path", { class: "axis-here", d: "M 0 -5 L 4 0 L 0 5 L -4 0 Z" });
  const aim = s("path", { class: "axis-aim", d: "M -3.5 -8 H 3.5 L 0 -3 Z" });
  const bar = s(
    "svg", { class: "axis-bar", viewBox: "-4 -9 108 18", "aria-hidden": "true" },
    s("path", { class: "axis-line", d: "M 0 -4 V 4 M 100 -4 V 4 M 0 0 H 100" }), aim, here,
  );
  const row = h("div", { class: "axis", role: "listitem" }, name, bar, value, unit);
  row.update = (axis, good, aimed) => {
    const target = aimed ? axis.target : null; // where a jog would have ended is no target any more
    const sound = good && axis.quality === "good" && axis.value !== null;
    const unitKey = axis.unit === "°" ? "deg" : axis.unit;
    put(name, axisOf(axis.name));
    put(value, sound ? figure(axis.value, 1) : "–");
    put(unit, unitOf(axis.unit));
    mark(row, "data-unsound", !sound);
    const range = axis.lower !== null && axis.upper !== null && axis.upper > axis.lower;
    const place = (v) => Math.max(0, Math.min(100, (100 * (v - axis.lower)) / (axis.upper - axis.lower)));
    show(bar, range);
    show(here, sound);
    if (range && sound) mark(here, "transform", `translate(${place(axis.value).toFixed(1)} 0)`);
    show(aim, target !== null);
    if (range && target !== null) mark(aim, "transform", `translate(${place(target).toFixed(1)} 0)`);
    const off = sound && target !== null && Math.abs(axis.value - target) > (IN_PLACE[unitKey] ?? 0.5);
    mark(row, "data-off", off);
    mark(row, "title", target === null ? null : `target ${figure(target, 1)} ${unitOf(axis.unit)}`);
  };
  return row;
}

function makeFact([name]) {
  const value = h("dd");
  const row = h("div", {}, h("dt", {}, spaced(name)), value);
  row.value = value;
  row.setting = name;
  return row;
}
