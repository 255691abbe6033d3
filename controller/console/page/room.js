/** The room's screen: everything of one treatment at a glance, without scrolling. */

import { couchPanel } from "./axes.js";
import { beamPanel, dosePanel } from "./dose.js";
import { breathingPanel } from "./breathing.js";
import { gantryDial } from "./dial.js";
import { interlockPanel } from "./interlocks.js";
import { h, keyed, mark, panel, put, show, sign } from "./dom.js";
import { jogHandle } from "./jog.js";
import { spotMap } from "./spots.js";
import { LAPSES, clock, figure, percent, person, sentence, stateOf, statusOf, whyOf } from "./words.js";

export function roomPage(desk) {
  const jog = (what) => jogHandle(desk, what);
  const parts = {
    state: statePanel(), treatment: treatmentPanel(desk), checklist: checklistPanel(), beam: beamPanel(), dose: dosePanel(),
    gantry: gantryDial(jog), couch: couchPanel(jog), interlocks: interlockPanel(desk),
  };
  const spots = spotMap(() => desk.again()), breathing = breathingPanel();
  const element = h(
    "div", { class: "room" },
    h("div", { class: "column" }, parts.state.element, parts.treatment.element, parts.checklist.element),
    h("div", { class: "column middle" }, spots.element, h("div", { class: "machine" }, parts.gantry.element, parts.couch.element)),
    h("div", { class: "column" }, parts.interlocks.element, parts.beam.element, parts.dose.element, breathing.element),
  );
  return {
    element,
    update(store) {
      if (!store?.view) return;
      const good = !store.stale;
      mark(element, "data-stale", store.stale);
      for (const part of Object.values(parts)) part.update(store.view, good, store);
      spots.update(store, good);
      breathing.update(store, good);
    },
  };
}

function statePanel() {
  const picture = sign("ring");
  const word = h("strong", { class: "state-word" });
  const meaning = h("p", { class: "state-meaning" });
  const lapse = h("p", { class: "lapse" });
  const left = h("b", { class: "number" });
  const what = h("span", {});
  lapse.append(what, " ", left);
  const element = h(
    "section", { class: "panel state", "aria-label": "State of the room" }, picture,
    h("div", { class: "state-words" }, word, meaning), lapse,
  );
  return {
    element,
    update(view, good) {
      const state = stateOf(view.state);
      mark(element, "data-tone", good ? state.tone : "unknown");
      picture.as(good ? state.shape : "unknown");
      put(word, good ? state.word : "Not known");
      put(meaning, good ? sentence(whyOf(view) || state.meaning) : `last seen: ${state.word}`);
      show(lapse, good && (view.deadline_s !== null || view.state.startsWith("irradiating")));
      mark(lapse, "data-none", view.deadline_s === null); // its place is kept while beam goes on and off: nothing is to jump
      if (view.deadline_s !== null) {
        put(what, LAPSES[view.state] ?? "ends in");
        const seconds = view.deadline_s / view.speed; // by the clock of the person who waits
        put(left, clock(seconds));
        mark(lapse, "data-tone", seconds < 15 ? "warn" : null);
      }
    },
  };
}

function treatmentPanel(desk) {
  const name = h("strong", { class: "patient-name" });
  const id = h("span", { class: "soft number" });
  const plan = h("p", { class: "plan-line" });
  const status = h("p", { class: "plan-status" });
  const beams = h("ol", { class: "beams" });
  const none = h("p", { class: "soft" }, "No plan is loaded. ", h("a", { class: "to-plans" }, "Choose a plan"));
  const some = h("div", {}, h("p", { class: "patient" }, name, " ", id), plan, status, beams);
  const element = panel("Patient and plan", { class: "treatment" }, none, some);
  return {
    element,
    update(view, good) {
      const { treatment } = view;
      mark(none.lastChild, "href", `#/plans/${desk.room()}`);
      show(none, !treatment);
      show(some, Boolean(treatment));
      if (!treatment) return;
      put(name, person(treatment.patient_name));
      put(id, treatment.patient_id);
      put(plan, `${treatment.plan_label}, fraction ${treatment.fraction}${treatment.remainder ? ", what is left of it" : ""}`);
      put(status, good ? `${statusOf(treatment.status)}${treatment.reason ? `: ${sentence(treatment.reason)}` : ""}` : "–");
      show(status, !good || !["loaded", "running"].includes(treatment.status));
      mark(status, "data-tone", { complete: "ready", partial: "warn", refused: "bad", fault: "bad" }[treatment.status] ?? null);
      keyed(
        beams, treatment.beams, (beam) => beam.number, makeBeam,
        (row, beam) => row.update(beam, good, treatment.current === beam.number),
      );
    },
  };
}

function makeBeam() {
  const name = h("span", { class: "beam-name" });
  const angle = h("span", { class: "number" });
  const part = h("span", { class: "number" });
  const status = h("span", { class: "soft" });
  const fill = h("span", { class: "meter-fill" });
  const row = h(
    "li", { class: "beam-row" }, h("div", { class: "beam-line" }, name, angle, status, part),
    h("div", { class: "meter slim", "aria-hidden": "true" }, fill),
  );
  row.update = (beam, good, current) => {
    put(name, `${beam.number}  ${beam.name}`);
    put(angle, `${figure(beam.gantry_angle_deg, 0)}°`);
    put(part, good ? percent(beam.meterset_delivered, beam.meterset_planned, beam.status === "complete") : "–");
    put(status, statusOf(beam.status));
    mark(row, "aria-current", current ? "true" : null);
    fill.style.transform = `scaleX(${beam.meterset_planned > 0 && good ? Math.min(1, beam.meterset_delivered / beam.meterset_planned).toFixed(2) : 0})`;
  };
  return row;
}

function checklistPanel() {
  const list = h("ul", { class: "checks" });
  const tally = h("span", { class: "soft" });
  const element = panel("Checklist", { class: "checklist" }, list);
  element.querySelector("h2").append(" ", tally);
  return {
    element,
    update(view, good) {
      const done = view.checklist.filter((item) => item.done).length;
      put(tally, good ? `${done} of ${view.checklist.length}` : "–");
      const next = good && view.state !== "standby" ? view.checklist.find((item) => !item.done) : null; // the others follow from it
      keyed(list, view.checklist, (item) => item.name, makeCheck, (row, item) => row.update(item, good, item === next));
    },
  };
}

function makeCheck() {
  const picture = sign("box");
  const label = h("span", { class: "check-label" });
  const detail = h("span", { class: "check-detail" });
  const word = h("span", { class: "unseen" });
  const row = h("li", {}, picture, label, word, detail);
  row.update = (item, good, next) => {
    picture.as(!good ? "unknown" : item.done ? "ticked" : "box");
    mark(row, "data-done", good && item.done);
    put(label, sentence(item.label));
    put(word, !good ? ", not known" : item.done ? ", done" : ", open");
    put(detail, next ? sentence(item.detail) : "");
    mark(row, "data-next", next);
    mark(row, "title", item.detail || null);
  };
  return row;
}
