/** The alarms of a room: the gravest first; acknowledge says "I have seen it", shelve puts one away for a while. */

import { enable, h, keyed, mark, panel, put, show, sign } from "./dom.js";
import { clock } from "./words.js";

const ORDER = { high: 0, medium: 1, low: 2 };
const SHELVE = [["10 min", 600], ["1 h", 3600], ["8 h", 28800]];

const seen = (alarm) => Number(Boolean(alarm.acknowledged_by));

/** What nobody has seen first, then the gravest, then the latest. */
const graver = (a, b) => seen(a) - seen(b) || ORDER[a.severity] - ORDER[b.severity] || b.raised_t_ns - a.raised_t_ns;

export function alarmPage(desk) {
  const list = h("ul", { class: "alarms" });
  const none = h("p", { class: "clear" }, sign("ticked"), h("span", {}, "No alarms."));
  const shelved = h("ul", { class: "alarms away" });
  const title = h("h3", {}, "Shelved");
  const element = h(
    "div", { class: "page" },
    panel(
      "Alarms", { class: "scrolling" },
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "List of alarms" }, none, list, title, shelved),
    ),
  );
  return {
    element,
    update(store) {
      if (!store?.view) return;
      mark(element, "data-stale", store.stale);
      const alarms = [...store.view.alarms].sort(graver);
      const here = alarms.filter((alarm) => !alarm.shelved_s);
      const away = alarms.filter((alarm) => alarm.shelved_s > 0);
      show(none, here.length === 0);
      show(title, away.length > 0);
      for (const [place, some] of [[list, here], [shelved, away]]) keyed(
        place, some, (alarm) => alarm.id, () => makeAlarm(desk), (row, alarm) => row.update(alarm, store.view),
      );
    },
  };
}

function makeAlarm(desk) {
  const picture = sign("alarm-low");
  const severity = h("b", { class: "alarm-severity" });
  const text = h("span", { class: "alarm-text" });
  const about = h("span", { class: "soft" });
  let id = "";
  const send = (name, more = {}) => desk.send(name, { id, ...more }, performance.now());
  const seen = h("button", { type: "button", class: "act", on: { click: () => send("acknowledge_alarm") } }, "Acknowledge");
  const times = h(
    "select", { "aria-label": "Shelve for" }, h("option", { value: "" }, "Shelve …"),
    ...SHELVE.map(([words, seconds]) => h("option", { value: String(seconds) }, words)),
  );
  times.addEventListener("change", () => {
    if (times.value) send("shelve_alarm", { duration_s: Number(times.value) });
    times.value = "";
  });
  const row = h("li", { class: "alarm" }, picture, severity, text, about, h("span", { class: "row" }, seen, times));
  row.update = (alarm, view) => {
    ({ id } = alarm);
    picture.as(`alarm-${alarm.severity}`);
    mark(row, "data-severity", alarm.severity);
    mark(row, "data-seen", Boolean(alarm.acknowledged_by));
    put(severity, alarm.severity);
    put(text, alarm.text);
    const ago = Math.max(0, (view.t_ns - alarm.raised_t_ns) / 1e9);
    const words = [alarm.source, alarm.active ? "stands" : "gone", alarm.count > 1 ? `${alarm.count} times` : "", `${clock(ago)} ago`];
    if (alarm.acknowledged_by) words.push(`acknowledged by ${alarm.acknowledged_by}`);
    if (alarm.shelved_s > 0) words.push(`shelved by ${alarm.shelved_by} for another ${clock(alarm.shelved_s)}`);
    put(about, words.filter(Boolean).join(", "));
    show(seen, !alarm.acknowledged_by);
    enable(seen, desk.may("acknowledge_alarm"), desk.why("acknowledge_alarm"));
    enable(times, desk.may("shelve_alarm"), desk.why("shelve_alarm"));
  };
  return row;
}
