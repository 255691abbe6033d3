/** The plans that the facility holds: import one, approve it, choose fraction and beams, load it in a room. */

import { enable, h, keyed, mark, panel, put, show, sign } from "./dom.js";
import { label } from "./interlocks.js";
import { figure, moment, person } from "./words.js";

const AGAIN_MS = 5000;
const LARGEST = 64 * 1024 * 1024;

export function planPage(desk) {
  const list = h("ul", { class: "choices" });
  const none = h("p", { class: "soft" }, "No plan is held yet. Import one.");
  const file = h("input", { type: "file", accept: ".dcm,.rst", "aria-label": "Plan file" });
  const bring = h("label", { class: "act file" }, h("span", {}, "Import plan …"), file);
  const detail = makeDetail(desk);
  const element = h(
    "div", { class: "page two" },
    panel("Plans", { class: "scrolling" }, h("div", { class: "row" }, bring), h("div", { class: "scroll" }, none, list)),
    detail.element,
  );
  let plans = [];
  let chosen = null;
  let bringing = false;

  async function load() {
    const answer = await desk.ask("/api/plans");
    if (answer === null) return;
    plans = answer.plans ?? answer;
    if (!plans.some((plan) => plan.id === chosen)) chosen = plans[0]?.id ?? null;
    draw();
  }
  function draw() {
    show(none, plans.length === 0);
    keyed(
      list, plans, (plan) => plan.id, (plan) => makePlan(() => ((chosen = plan.id), draw())),
      (row, plan) => row.update(plan, plan.id === chosen, desk.room()),
    );
    detail.choose(plans.find((plan) => plan.id === chosen) ?? null, load);
  }
  file.addEventListener("change", async () => {
    const [one] = file.files;
    file.value = "";
    if (!one) return;
    if (one.size > LARGEST) return desk.say(`${one.name} is too large for a plan`, "bad");
    bringing = true;
    const answer = await desk.upload("/api/plans", one);
    bringing = false;
    if (answer) {
      chosen = answer.value?.id ?? answer.value?.plan_id ?? answer.id ?? chosen;
      desk.say(answer.value?.told ? `${one.name} was there already` : `${one.name} imported`, "plain", answer.value?.told);
    }
    load();
  });
  return {
    element,
    enter: load,
    every: AGAIN_MS,
    update() {
      enable(file, desk.signed() && !bringing, bringing ? "under way" : "sign in first");
      detail.update();
    },
  };
}

function makePlan(choose) {
  const name = h("b", {}), about = h("span", { class: "soft" }), fit = h("span", { class: "chip" });
  const button = h("button", { type: "button", class: "choice", on: { click: choose } }, name, about, fit);
  const row = h("li", {}, button);
  row.update = (plan, chosen, room) => {
    put(name, plan.label || plan.file);
    put(about, `${person(plan.patient_name)}, ${plan.patient_id}, ${plan.species}, ${plan.fractions} fractions`);
    const against = plan.objections[room];
    const first = unsettled(plan), all = first === null && isGiven(plan);
    put(fit, first ? `✕ fraction ${first.number} ${first.words.split(",")[0]}` : all ? "✓ all fractions given" : against === undefined
      ? "not judged" : against.length ? `✕ ${against.length} objections` : "✓ can be treated");
    mark(fit, "data-tone", first ? "bad" : all || against === undefined ? null : against.length ? "bad" : "ready");
    mark(button, "aria-pressed", String(chosen));
  };
  return row;
}

/** The fraction that a physicist has to settle before anything more of it is given; null: none. */
const unsettled = (plan) => (plan.history ?? []).find((one) => ["reconcile", "signature"].includes(one.status)) ?? null;
const isGiven = (plan) => plan.next === null && (plan.history ?? []).filter((one) => ["complete", "given"].includes(one.status)).length >= plan.fractions;

function makeDetail(desk) {
  const facts = h("dl", { class: "facts wide" });
  const beams = h("tbody", {});
  const objections = h("ul", { class: "objections" });
  const fraction = h("input", { type: "number", min: "1", value: "1", required: true });
  const rest = h("input", { type: "checkbox" });
  const load = h("button", { type: "submit", class: "act main" }, "Load in room");
  const approve = h("button", { type: "button", class: "act" }, "Approve");
  const form = h(
    "form", { class: "form" }, label("Fraction", fraction),
    h("label", { class: "check" }, rest, h("span", {}, "only what an earlier delivery left")), approve, load,
  );
  const table = h(
    "table", { class: "table" },
    h("thead", {}, h("tr", {}, ...["", "Beam", "Gantry", "Layers", "Meterset"].map((name) => h("th", { scope: "col" }, name)))),
    beams,
  );
  const title = h("h3", {}, "Objections");
  const body = h("div", { class: "scroll" }, facts, table, title, objections, form);
  const element = panel("Plan", { class: "scrolling plan-detail" }, body);
  let plan = null;
  let again = () => {};
  const picked = new Set();

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const every = picked.size === plan.beams.length;
    const args = {
      plan_id: plan.id, fraction: Number(fraction.value), ...(every ? {} : { beams: [...picked] }),
      ...(rest.checked ? { remainder: true } : {}),
    };
    if (await desk.send("load_plan", args, performance.now())) location.hash = `#/room/${desk.room()}`;
  });
  approve.addEventListener("click", async () => {
    await desk.send("approve_plan", { plan_id: plan.id }, performance.now());
    again();
  });
  const numberOf = (beam) => beam.number ?? beam.beam_number;

  return {
    element,
    choose(next, reload) {
      again = reload;
      show(body, next !== null);
      if (next === null) return;
      if (next.id !== plan?.id) {
        picked.clear();
        for (const beam of next.beams) picked.add(numberOf(beam));
      }
      if (next.id !== plan?.id || JSON.stringify(next.next) !== JSON.stringify(plan.next)) {
        fraction.value = String(next.next?.fraction ?? unsettled(next)?.number ?? (isGiven(next) ? next.fractions : 1)); // a proposal
        rest.checked = next.next?.remainder ?? unsettled(next) !== null;
      }
      plan = next;
      mark(fraction, "max", String(plan.fractions));
      const pairs = [
        ["Label", plan.label], ["Patient", person(plan.patient_name)], ["Patient ID", plan.patient_id],
        ["Given", plan.standing || "–"], ["Ion", plan.species], ["Made for", plan.machine || "–"],
        ["Approval", plan.approved_by ? `${plan.approval}, here by ${plan.approved_by}` : plan.approval],
        ["File", plan.file], ["Received", moment(plan.received_utc)], ["SHA-256", `${plan.sha256.slice(0, 16)} …`],
      ];
      facts.replaceChildren(...pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value ?? "–"))));
      keyed(beams, plan.beams, numberOf, (beam) => makeBeam(beam, numberOf(beam), picked), (row, beam) => row.update(beam));
      const against = plan.objections[desk.room()];
      const first = unsettled(plan) ? [h("li", {}, sign("cross"), plan.standing)] : [];
      show(title, first.length > 0 || against === undefined || against.length > 0);
      objections.replaceChildren(...first, ...(against === undefined ? [h(
        "li", {}, `not judged for ${desk.room() ?? "a room"}`,
      )] : against.map((why) => h("li", {}, sign("cross"), why))));
    },
    update() {
      if (plan === null) return;
      put(load, `Load in ${desk.room() ?? "room"}`);
      enable(load, desk.may("load_plan") && picked.size > 0, picked.size ? desk.why("load_plan") : "choose a beam");
      enable(approve, desk.may("approve_plan"), desk.why("approve_plan"));
      show(approve, !plan.approved_by && desk.person()?.role === "physicist");
    },
  };
}

function makeBeam(first, number, picked) {
  const box = h("input", { type: "checkbox", checked: picked.has(number), "aria-label": `beam ${number}` });
  box.addEventListener("change", () => (box.checked ? picked.add(number) : picked.delete(number)));
  const cells = Array.from({ length: 4 }, () => h("td", {}));
  const row = h("tr", {}, h("td", {}, box), ...cells);
  row.update = (beam) => {
    const angle = beam.gantry_angle_deg ?? beam.gantry_deg ?? beam.angle_deg;
    const meterset = beam.meterset ?? beam.meterset_planned;
    put(cells[0], `${number}  ${beam.name ?? beam.beam_name ?? ""}`);
    put(cells[1], angle === undefined ? "–" : `${figure(angle, 1)}°`);
    put(cells[2], beam.layers ?? "–");
    put(cells[3], meterset === undefined ? "–" : `${figure(meterset, 2)} ${beam.unit ?? beam.meterset_unit ?? "MU"}`);
    box.checked = picked.has(number);
  };
  return row;
}
