/** What was treated: a list, the report of one opened in place, and what a physicist settles of one that was cut off. */

import { enable, h, keyed, mark, panel, put, show, sign } from "./dom.js";
import { label } from "./interlocks.js";
import { figure, moment, percent, statusOf } from "./words.js";

const AGAIN_MS = 5000;
const SIGN = { complete: "tick", given: "tick", partial: "part", open: "rays", unbegun: "ring" };

const salvaged = (names) => names.some((name) => name.startsWith("salvage-"));

export function treatmentPage(desk) {
  const list = h("ul", { class: "choices" });
  const none = h("p", { class: "soft" }, "Nothing was treated yet.");
  const title = h("span", { class: "soft" });
  const standing = h("p", { class: "standing" });
  const sessions = h("div", { class: "row" });
  const files = h("div", { class: "row" });
  const sheet = h("iframe", { class: "sheet", title: "Report", sandbox: "allow-same-origin" }); // no script runs in it
  const hint = h("p", { class: "soft" }, "Choose a treatment to read its report.");
  const settling = makeSettling(desk, () => chosen && open(chosen, true));
  const report = panel("Report", { class: "report" }, standing, settling.element, sessions, files, hint, sheet);
  report.querySelector("h2").append(" ", title);
  const element = h(
    "div", { class: "page two narrow" },
    panel("Treatments", { class: "scrolling" }, h("div", { class: "scroll" }, none, list)), report,
  );
  let treatments = [];
  let chosen = null;

  async function load() {
    const answer = await desk.ask("/api/treatments");
    if (answer === null) return;
    treatments = answer.treatments ?? answer;
    draw();
    tell(treatments.find((treatment) => treatment.id === chosen) ?? null);
  }
  function tell(one) {
    const words = one?.standing ?? "";
    put(standing, words && `${words[0].toUpperCase()}${words.slice(1)}.`);
    show(standing, Boolean(words));
    settling.choose(one);
  }
  function draw() {
    show(none, treatments.length === 0);
    keyed(list, treatments, (one) => one.id, (one) => makeTreatment(() => open(one.id)), (row, one) => row.update(one, one.id === chosen));
  }
  async function open(id, again = false) {
    chosen = id;
    if (again) await load();
    draw();
    const one = treatments.find((treatment) => treatment.id === id);
    tell(one ?? null);
    if (!one) return;
    put(title, `${one.plan_label}, fraction ${one.fraction}, ${moment(one.started_utc)}`);
    const detail = await desk.ask(`/api/treatments/${encodeURIComponent(id)}`);
    if (chosen !== id) return;
    // A session without a summary was cut off, and reconciled where it has a salvage record; else it is the one that goes on.
    const told = (summary, names) => summary?.status ?? (salvaged(names) ? "cut off in beam" : one.status);
    const later = (detail?.sessions ?? []).map(({ directory, files: names, summary }) => ({ directory, files: names, status: told(summary, names) }));
    const all = [{ directory: null, files: one.files, status: told(detail?.summary, one.files) }, ...later];
    const buttons = all.map((session, index) => h(
      "button", { type: "button", class: "small", on: { click: () => read(index) } },
      sign(SIGN[session.status] ?? "cross"), `Session ${index + 1}: ${statusOf(session.status)}`,
    ));
    sessions.replaceChildren(...(all.length > 1 ? buttons : []));
    const read = (index) => {
      buttons.forEach((button, other) => mark(button, "aria-pressed", String(other === index)));
      return showSession(id, all[index]);
    };
    await read(all.length - 1);
  }
  async function showSession(id, session) {
    const base = `/api/treatments/${encodeURIComponent(id)}/files/`;
    const ask = session.directory ? `?session=${encodeURIComponent(session.directory)}` : "";
    files.replaceChildren(...session.files.map((name) => h(
      "button", { type: "button", class: "small", on: { click: () => save(base, name, ask) } }, `Save ${name}`,
    )));
    const report = ["report.html", "salvage-report.html"].find((name) => session.files.includes(name));
    show(sheet, Boolean(report));
    show(hint, report !== "report.html");
    put(hint, salvaged(session.files) ? "This session was cut off: its report, and its record, hold what its journal holds." : "This session has no report.");
    const text = report ? await desk.file(`${base}${report}${ask}`) : null;
    if (text !== null && chosen === id) showReport(sheet, text);
  }
  async function save(base, name, ask) {
    const blob = await desk.file(`${base}${encodeURIComponent(name)}${ask}`, "blob");
    if (blob === null) return;
    const link = h("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
  return {
    element,
    every: AGAIN_MS,
    refresh: load,
    async enter(wanted) {
      show(sheet, false);
      await load();
      if (wanted) await open(wanted);
    },
    update: settling.update,
  };
}

/** What is known of a treatment that was cut off, and what a physicist does about it: reconcile, and sign where the dose is in doubt. */
function makeSettling(desk, again) {
  const what = h("p", {});
  const bounds = h("ul", { class: "objections" });
  const go = h("button", { type: "button", class: "act main" }, "Reconcile");
  const reason = h("input", { type: "text", required: true, maxlength: "300", autocomplete: "off" });
  const accept = h("button", { type: "submit", class: "act main" }, "Sign");
  const form = h("form", { class: "form", novalidate: true }, label("Why this dose is accepted", reason), accept);
  const missing = h("p", { class: "soft" });
  const element = h("section", { class: "settling", "aria-label": "To be settled", hidden: true }, what, bounds, go, form, missing);
  let one = null;
  let busy = false;

  async function send(more) {
    if (one === null || busy) return;
    busy = true;
    try {
      const answer = await desk.send("reconcile", { treatment: one.id, ...more }, performance.now());
      if (!answer) return;
      reason.value = "";
      desk.say(
        answer.value.status === "locked" ? "Reconciled: its dose is known only within bounds and waits for a signature" : "Settled",
        "plain", (answer.value.lines ?? []).join(". "),
      );
      await again();
    } finally {
      busy = false;
    }
  }
  go.addEventListener("click", () => send({}));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (reason.value.trim()) return send({ reason: reason.value.trim() });
    desk.say("Not signed: write first why this dose is accepted", "bad");
    reason.focus();
  });
  const lacks = () => {
    if (one.room !== desk.room()) return `Open ${one.room} first: it was treated there.`;
    const role = desk.person()?.role;
    if (role !== "physicist") return "A physicist does this: sign in as physicist and take control.";
    if (!desk.holds()) return `Take control as physicist first: ${desk.why("reconcile")}.`;
    return desk.why("reconcile") && `Not possible: ${desk.why("reconcile")}.`;
  };
  const update = () => {
    if (one === null || !one.needs && !one.bounds?.length) return;
    const why = one.needs ? lacks() : "";
    enable(go, !why && !busy, why);
    enable(accept, !why && !busy, why);
    put(missing, why);
  };
  return {
    element,
    update,
    choose(next) {
      if (next?.id !== one?.id) reason.value = "";
      one = next;
      show(element, Boolean(one?.needs || one?.bounds?.length));
      if (one === null) return;
      mark(element, "data-needs", one.needs || null);
      put(what, SETTLE[one.needs ?? ""]);
      keyed(bounds, one.bounds ?? [], (line) => line, (line) => h("li", {}, line), () => {});
      show(go, one.needs === "reconcile");
      show(form, one.needs === "signature");
      show(missing, Boolean(one.needs));
      update();
    },
  };
}
const SETTLE = {
  reconcile: "The program ended while beam was on. Until a physicist has reconciled it, everything that was asked for counts as given.",
  signature: "The dose is in doubt. A physicist accepts what is stated here, with a reason; nothing more is delivered before.",
  "": "From the ledger:",
};

function makeTreatment(choose) {
  const picture = sign("tick");
  const name = h("b", {}), about = h("span", { class: "soft" }), part = h("span", { class: "number" });
  const button = h("button", { type: "button", class: "choice", on: { click: choose } }, picture, name, part, about);
  const row = h("li", {}, button);
  row.update = (one, chosen) => {
    picture.as(SIGN[one.status] ?? "cross");
    put(name, `${one.plan_label}, fraction ${one.fraction}`);
    put(part, percent(one.meterset_delivered, one.meterset_planned, one.status === "complete"));
    const ending = one.termination.replaceAll("_", " ").toLowerCase();
    const words = [
      one.room, one.patient_id, moment(one.started_utc), statusOf(one.status), ending === "normal" ? "" : ending,
      `${figure(one.meterset_delivered, 2)} of ${figure(one.meterset_planned, 2)} ${one.unit}`,
      ["unbegun", "refused", "fault"].includes(one.status) ? one.reason : "", one.simulated ? "SIMULATED" : "",
    ];
    put(about, words.filter(Boolean).join(", "));
    mark(button, "aria-pressed", String(chosen));
  };
  return row;
}

/**
 * Show a report in a frame in which nothing runs. The page's own rules forbid style that comes as text in a document, so the
 * report's styles are taken out before it is read and handed over as sheets; it is shown in its dark colours.
 */
function showReport(frame, text) {
  const plain = text.replace(/<style\b/gi, "<template data-sheet").replace(/<\/style>/gi, "</template>").replace(/(<[^>]*?)\sstyle=/gi, "$1 data-style=");
  const parsed = new DOMParser().parseFromString(plain, "text/html");
  const sheets = [...parsed.querySelectorAll("template[data-sheet]")];
  const style = sheets.map((sheet) => sheet.content.textContent.replaceAll("(prefers-color-scheme: dark)", "screen")).join("\n");
  for (const one of parsed.querySelectorAll("template, script, link, iframe, object, embed, base, form, meta[http-equiv]")) one.remove();
  frame.onload = () => {
    const inner = frame.contentDocument;
    const sheet = new frame.contentWindow.CSSStyleSheet();
    sheet.replaceSync(style);
    inner.adoptedStyleSheets = [sheet];
    for (const element of inner.querySelectorAll("[data-style]")) element.style.cssText = element.dataset.style;
  };
  frame.srcdoc = `<!doctype html>${parsed.documentElement.outerHTML}`;
}
