/** The log of commands: who asked for what, from where, and what became of it; the newest first. */

import { h, keyed, mark, panel, put } from "./dom.js";
import { moment, roleOf, sentence, spaced } from "./words.js";

const AGAIN_MS = 3000;

export function logPage(desk) {
  const filter = h(
    "input",
    {
      type: "search", placeholder: "Filter: a person, a command, refused …", "aria-label": "Filter",
      spellcheck: "false", autocomplete: "off",
    },
  );
  const tally = h("span", { class: "soft" });
  const source = h(
    "select", { "aria-label": "Which log" }, h("option", { value: "room" }, "Commands"),
    h("option", { value: "" }, "Sign-ins and people"),
  );
  source.addEventListener("change", () => load());
  const body = h("tbody", {});
  const table = h(
    "table", { class: "table" },
    h("thead", {}, h("tr", {}, ...["Time UTC", "Who", "From", "Command", "Outcome", "Why"].map((name) => h("th", { scope: "col" }, name)))),
    body,
  );
  const element = h(
    "div", { class: "page" },
    panel(
      "Log", { class: "scrolling" }, h("div", { class: "row" }, source, filter, tally),
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Log of commands" }, table),
    ),
  );
  let entries = [];

  async function load() {
    const room = desk.room();
    if (room === null) return;
    const answer = await desk.ask(source.value ? `/api/audit?room=${encodeURIComponent(room)}&limit=500` : "/api/audit?limit=500");
    if (answer === null) return;
    entries = joined([...answer.entries].sort((a, b) => a.seq - b.seq));
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

/** A command and what became of it are two entries of the log; here they are one line. */
function joined(entries) {
  const lines = new Map();
  for (const entry of entries) {
    const key = entry.sequence === undefined ? `${entry.seq} ${entry.kind} ${lines.size}` : `${entry.console} ${entry.sequence} ${entry.name}`;
    lines.set(key, { ...lines.get(key), ...entry, key });
  }
  return [...lines.values()].map(readEntry).sort((a, b) => b.order - a.order || (a.cells[0] < b.cells[0] ? 1 : -1));
}

function readEntry(entry) {
  const refused = /refused|failed/.test(entry.kind ?? "");
  const ours = entry.sequence === undefined; // of the console itself: sign-ins, people
  const who = ours ? (entry.by ?? entry.name ?? "") : entry.actor;
  const what = ours ? spaced(entry.kind.replaceAll(".", " ")) : spaced(entry.name);
  const outcome = refused ? "✕ refused" : entry.kind === "command" ? "under way" : "✓ done";
  const why = entry.reason ?? (entry.by ? entry.name : "");
  const cells = [
    moment(entry.utc), [who, entry.role !== who ? roleOf(entry.role) : ""].filter(Boolean).join(", "),
    entry.console ?? "", what, outcome, sentence(why),
  ].map(String);
  return { key: entry.key, order: entry.seq ?? 0, cells, refused, search: `${cells.join(" ")} ${entry.name ?? ""}`.toLowerCase() };
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
