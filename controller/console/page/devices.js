/** Every device of a room with its signals: driver, endpoint, quality and age; a filter over all of it. */

import { h, keyed, mark, panel, put, sign } from "./dom.js";
import { count, unitOf } from "./words.js";

const COLUMNS = ["Device", "Signal", "Value", "", "Quality", "Age", "Source"];
const NUMBERS = new Set(["Value", "Age"]);

export function devicePage() {
  const filter = h(
    "input",
    {
      type: "search", placeholder: "Filter: a device, a signal, good, stale, simulated …", "aria-label": "Filter",
      spellcheck: "false", autocomplete: "off",
    },
  );
  const tally = h("span", { class: "soft" });
  const body = h("tbody", {});
  const heads = COLUMNS.map((name) => h("th", { scope: "col", class: NUMBERS.has(name) ? "num" : null }, name));
  const table = h("table", { class: "table" }, h("thead", {}, h("tr", {}, ...heads)), body);
  const element = h(
    "div", { class: "page" },
    panel(
      "Devices", { class: "scrolling" }, h("div", { class: "row" }, filter, tally),
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of devices" }, table),
    ),
  );
  return {
    element,
    update(store) {
      if (!store?.view) return;
      mark(element, "data-stale", store.stale);
      const words = filter.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
      const rows = store.view.devices.flatMap(rowsOf).filter((row) => words.every((word) => row.search.includes(word)));
      put(tally, `${rows.filter((row) => row.signal).length} signals of ${new Set(rows.map((row) => row.device.name)).size} devices`);
      keyed(body, rows, (row) => row.key, makeRow, (line, row) => line.update(row, !store.stale));
    },
  };
}

function rowsOf(device) {
  const [kind, link] = [device.simulated ? "simulated" : "real", device.connected ? "connected" : "disconnected"];
  const about = [device.name, device.driver, device.endpoint, kind, link, device.error].join(" ");
  const head = { key: device.name, device, signal: null, search: about.toLowerCase() };
  return [
    head,
    ...device.signals.map((signal) => ({
      key: `${device.name}/${signal.name}`, device, signal,
      search: `${about} ${signal.name} ${signal.quality}`.toLowerCase(),
    })),
  ];
}

function makeRow(first) {
  return first.signal ? signalRow() : headRow();
}

function headRow() {
  const picture = sign("ticked");
  const name = h("b", {}), words = h("span", { class: "soft" });
  const row = h("tr", { class: "device" }, h("th", { scope: "rowgroup", colspan: "7" }, picture, name, words));
  row.update = ({ device }, good) => {
    picture.as(!good ? "unknown" : device.connected ? "ticked" : "cross");
    mark(row, "data-tone", device.connected ? null : "bad");
    put(name, device.name);
    const [link, kind] = [device.connected ? "connected" : "not connected", device.simulated ? "simulated" : "real"];
    const said = [link, kind, device.driver, device.endpoint, device.identity].filter(Boolean).join(", ");
    put(words, device.error ? `${said}: ${device.error}` : said);
  };
  return row;
}

function signalRow() {
  const cells = COLUMNS.map((column) => h("td", { class: NUMBERS.has(column) ? "num" : null }));
  const [device, name, value, unit, quality, age, source] = cells;
  const row = h("tr", {}, ...cells);
  row.update = ({ device: of, signal }, good) => {
    const sound = good && signal.quality === "good";
    put(device, of.name);
    put(name, signal.name);
    put(value, sound ? shown(signal.value) : "–");
    put(unit, unitOf(signal.unit));
    put(quality, !good ? "stale" : sound ? "good" : `✕ ${signal.quality}`);
    put(
      age,
      signal.age_ms === null ? "–" : signal.age_ms < 10000 ? `${Math.round(signal.age_ms)} ms` : `${Math.round(signal.age_ms / 1000)} s`,
    );
    put(source, signal.simulated ? "simulated" : "real");
    mark(row, "data-tone", sound ? null : "bad");
    mark(value, "title", sound ? null : `last value ${shown(signal.value)}`);
  };
  return row;
}

function shown(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") return Number.isInteger(value) ? count(value).replace("-", "−") : String(Number(value.toPrecision(6))).replace("-", "−");
  if (Array.isArray(value)) return value.length > 4 ? `${value.length} values` : value.map(shown).join(", ");
  return String(value);
}
