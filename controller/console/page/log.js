/** The log of commands: who asked for what, from where, and what became of it; the newest first. */

import { h, keyed, mark, panel, put } from "./dom.js";
import { moment, roleOf } from "./words.js";

const AGAIN_MS = 3000;

export function logPage(desk) {
  const filter = h("input", { type: "search", placeholder: "Filter: a person, a command, refused …", "aria-label": "Filter", spellcheck: "false", autocomplete: "off" });
  const tally = h("span", { class: "soft" });
  const body = h("tbody", {});
  const table = h("table", { class: "table" }, h("thead", {}, h("tr", {}, ...["Time UTC", "Who", "From", "Command", "Outcome", "Why"].map((name) => h("th", { scope: "col" }, name)))), body);
  const element = h("div", { class: "page" }, panel("Log", { class: "scrolling" }, h("div", { class: "row" }, filter, tally), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Log of commands" }, table)));
  let entries = [];

  async function load() {
    const room = desk.room();
    if (room === null) return;
    const answer = await desk.ask(`/api/audit?room=${encodeURIComponent(room)}&limit=500`);
    if (answer === null) return;
    entries = (Array.isArray(answer) ? answer : answer.entries).map(readEntry).sort((a, b) => b.order - a.order);
    draw();
  }
  function draw() {
    const words = filter.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const rows = entries.filter((entry) => words.every((word) => entry.search.includes(word)));
    put(tally, `${rows.length} of ${entries.length}`);
    keyed(body, rows, (entry) => entry.key, makeRow, (row, entry) => row.update(entry));
  }
  filter.addEventListener("input", draw);
  return { element, enter: load, every: AGAIN_MS, update() {} };
}

function readEntry(entry, index) {
  const data = entry.data ?? entry;
  const accepted = data.accepted ?? entry.accepted;
  const cells = [
    moment(entry.utc ?? data.utc), [data.actor, data.role && roleOf(data.role)].filter(Boolean).join(", "), data.console ?? "", data.name ?? data.command ?? entry.kind ?? "",
    accepted === undefined ? (data.outcome ?? entry.kind ?? "") : accepted ? "✓ done" : "✕ refused", data.reason ?? data.why ?? "",
  ].map((cell) => String(cell ?? ""));
  return { key: `${entry.seq ?? index} ${entry.kind ?? ""}`, order: entry.seq ?? -index, cells, refused: accepted === false, search: cells.join(" ").toLowerCase() };
}

function makeRow() {
  const cells = Array.from({ length: 6 }, () => h("td", {}));
  const row = h("tr", {}, ...cells);
  row.update = (entry) => {
    entry.cells.forEach((words, index) => put(cells[index], words));
    mark(row, "data-tone", entry.refused ? "bad" : null);
  };
  return row;
}
