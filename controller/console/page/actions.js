/**
 * The rail of acts at the foot of every page: the one question with its answer, pause, end of the field, what else is possible, stop.
 * Nothing here decides: the room judges every command, and what it refuses is shown with its reason.
 */

import { enable, h, keyed, mark, put, show, sign } from "./dom.js";
import { holdButton } from "./hold.js";
import { ACTS, factsOf, lost, questionOf, roleOf } from "./words.js";

const DELIBERATE = new Set(["beam_on", "resume"]);
const HOLD_MS = 1000;
const YES = {
  identify: "Yes, this is right", positioned: "Accept position", move_on: "All clear: go on", beam_on: "BEAM ON",
  resume: "BEAM ON again",
};

/** `desk`: {send(name, args, acted), stop(acted), may(name), why(name), offered(name), store(), stoppable()}. */
export function actionRail(desk) {
  const question = makeQuestion(desk);
  const pause = h(
    "button", { type: "button", class: "act pause", on: { click: () => desk.send("pause", {}, performance.now()) } },
    sign("bars"), h("span", {}, "Pause"), h("kbd", {}, "F8"),
  );
  const end = asked(
    h("button", { type: "button", class: "act" }, sign("part"), h("span", {}, "End field")),
    "End this field now? What is missing stays on record.", () => desk.send("terminate", {}, performance.now()),
  );
  const others = h("div", { class: "others" });
  const stop = makeStop(desk);
  const element = h(
    "footer", { class: "rail", "aria-label": "Acts" }, question.element,
    h("div", { class: "acts" }, others, end, pause), stop.element,
  );

  return {
    element,
    question,
    stop,
    pause(acted) {
      if (desk.may("pause")) desk.send("pause", {}, acted);
    },
    update(store) {
      question.update(store);
      enable(pause, desk.may("pause"), desk.why("pause"));
      enable(end.trigger, desk.may("terminate"), desk.why("terminate"));
      const possible = ACTS.filter(({ name, only, when }) => desk.offered(name) && (!only || desk.person()?.role === only) && (!when || when(store.view)));
      keyed(others, possible, (act) => act.label, (act) => makeAct(desk, act), (button, act) => {
        enable(button.trigger ?? button, desk.may(act.name), desk.why(act.name));
      });
      stop.update(store);
    },
  };
}

function makeAct(desk, { name, label, ask, args }) {
  const send = () => desk.send(name, args ?? {}, performance.now());
  const button = h("button", { type: "button", class: "act" }, h("span", {}, label));
  if (ask) return asked(button, ask, send);
  button.addEventListener("click", send);
  return button;
}

/** A button that asks once more in its place before it acts. */
export function asked(button, words, act, yes = "Yes") {
  const box = h("span", { class: "asked" }, button);
  const sure = h("button", { type: "button", class: "act sure" }, yes);
  const back = h("button", { type: "button", class: "act" }, "Back");
  const really = h("span", { class: "really", role: "group", hidden: true }, h("span", {}, words), sure, back);
  box.append(really);
  const open = (yesNo) => {
    show(button, !yesNo);
    show(really, yesNo);
    (yesNo ? back : button).focus();
  };
  button.addEventListener("click", () => open(true));
  back.addEventListener("click", () => open(false));
  sure.addEventListener("click", () => {
    open(false);
    act();
  });
  box.trigger = button;
  return box;
}

function makeQuestion(desk) {
  const text = h("p", { class: "question-text" });
  const facts = h("dl", { class: "question-facts" });
  const label = h("span", {});
  const hint = h("kbd", {}, "F9");
  const yes = h("button", { type: "button", class: "answer" }, sign("tick"), label, hint);
  const no = h("button", { type: "button", class: "act", on: { click: () => answer("decline", performance.now()) } }, "No");
  const idle = h("p", { class: "soft idle" });
  const asking = h("div", { class: "asking" }, h("div", { class: "question-words" }, text, facts), no, yes);
  const element = h("section", { class: "question", "aria-label": "What the room asks" }, idle, asking);
  let asks = null; // the question that is shown
  let shape = "";
  let given = null; // the challenge that was answered

  const can = () => asks !== null && given !== asks.challenge && desk.may(asks.command);
  const answer = async (name, acted, challenge = asks?.challenge) => {
    if (!asks) return;
    given = challenge;
    const accepted = await desk.send(name, { challenge }, acted);
    if (!accepted) given = null;
  };
  const deliberate = () => asks !== null && DELIBERATE.has(asks.command);
  const hold = holdButton(yes, {
    forMs: HOLD_MS,
    armed: () => (deliberate() && can() ? asks.challenge : null),
    act: (challenge, acted) => answer(asks.command, acted, challenge),
  });
  // What was pressed for one question answers no other, however quickly they follow each other.
  let pressed = null;
  for (const kind of ["pointerdown", "keydown"]) yes.addEventListener(kind, () => (pressed = asks?.challenge ?? null));
  yes.addEventListener("click", () => {
    if (!deliberate() && can() && (pressed === null || pressed === asks.challenge)) answer(asks.command, performance.now());
    pressed = null;
  });

  return {
    element,
    down(acted) {
      if (!can()) return;
      if (deliberate()) hold.begin();
      else answer(asks.command, acted);
    },
    up: () => hold.giveUp(),
    update(store) {
      const view = store?.view;
      asks = view && !store.stale ? view.question : null;
      show(asking, asks !== null);
      show(idle, asks === null);
      mark(element, "data-asks", asks ? asks.kind : null);
      if (asks === null) {
        put(idle, desk.idle());
        return;
      }
      put(text, questionOf(asks));
      const pairs = factsOf(asks.facts);
      const now = JSON.stringify(pairs);
      if (now !== shape) {
        facts.replaceChildren(...pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
        shape = now;
      }
      put(label, YES[asks.kind] ?? "Yes");
      put(hint, DELIBERATE.has(asks.command) ? "hold 1 s, or hold F9" : "F9");
      mark(yes, "class", DELIBERATE.has(asks.command) ? "answer deliberate" : "answer");
      yes.firstChild.as(DELIBERATE.has(asks.command) ? "rays" : "tick");
      enable(yes, can(), desk.why(asks.command));
      enable(no, can() && desk.may("decline"), desk.why("decline"));
    },
  };
}

function makeStop(desk) {
  const what = h("span", { class: "stop-room" });
  const button = h(
    "button", { type: "button", class: "stop", "aria-keyshortcuts": "Control+Shift+X" }, sign("stop"),
    h("span", { class: "stop-word" }, "STOP", what), h("kbd", {}, "hold Esc"),
  );
  const said = h("p", { class: "stop-said", role: "alert" });
  const element = h("div", { class: "stop-place" }, button, said);
  let sent = 0;

  async function stop() {
    const room = desk.room();
    if (room === null) return;
    const mine = (sent += 1);
    mark(button, "data-sent", true);
    put(said, `STOP ${room} sent`);
    const loudly = () => {
      if (mine !== sent) return;
      put(said, `STOP NOT CONFIRMED: press the emergency stop of ${room}`);
      mark(said, "data-tone", "bad");
    };
    const heard = await desk.stop(room, loudly);
    if (mine !== sent) return;
    mark(button, "data-sent", null);
    if (!heard) return loudly();
    put(said, `STOP ${room} received`);
    mark(said, "data-tone", null);
    setTimeout(() => mine === sent && put(said, ""), 4000);
  }
  let pressed = -Infinity;
  button.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    pressed = performance.now();
    stop(); // as it goes down: nobody waits for a finger to leave
  });
  button.addEventListener("click", () => {
    if (performance.now() - pressed > 3000) stop(); // by key, or by a reader of the screen
  });

  return {
    element,
    stop,
    held: (part) => button.style.setProperty("--held", part.toFixed(3)),
    update() {
      const room = desk.room();
      put(what, room ?? "");
      enable(button, room !== null, "no room is open");
    },
  };
}

/** Why a command is not possible for this person now; empty when it is. */
export function whyNot(view, person, holds, name, stale) {
  if (!view || stale) return "no fresh view of the room";
  const roles = view.commands[name];
  if (!roles) return "not now";
  if (!person) return "sign in first";
  if (!roles.includes(person.role)) return `for ${roles.map(roleOf).join(" or ")}`;
  if (!holds && name === "enter_service" && view.control && !lost(view.control)) return `${view.control.console} commands this room`;
  if (!holds && !FREE.has(name)) return view.control && !lost(view.control) ? `${view.control.console} commands this room` : "take control first";
  return "";
}

// commands that need no control of the room (the room judges it again)
const FREE = new Set([
  "stop", "pause", "take_control", "import_plan", "approve_plan", "acknowledge_alarm", "shelve_alarm", "approve_bypass",
  "end_bypass", "enter_service", "reset_interlock", "manage_users",
]);
