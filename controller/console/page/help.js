/** Keys, signs and words of the console. */

import { beside, h, sign } from "./dom.js";
import { KEYS } from "./keys.js";

const SIGNS = [
  ["ring", "standby"], ["half", "preparing"], ["diamond", "ready for beam-on"], ["rays", "beam on or held"],
  ["bars", "interrupted"], ["tick", "complete"], ["part", "ended early"],
  ["cross", "fault, trip"], ["wrench", "service"], ["unknown", "not known"],
];
const WORDS = [
  ["–", "No sound value is known: the device does not answer, its value is too old, or the device itself doubts it."],
  [
    "STALE",
    "No view of the room came for a second. Values are crossed out and beam cannot be asked for. STOP still works; so do the room's own buttons.",
  ],
  ["First out", "The interlock that tripped first. The others may only follow from it."],
  ["Take control", "One console commands a room. The others look on; STOP works from all of them."],
  ["Hold", "Beam on and resume are deliberate: the button or F9 is held for one second. Letting go earlier does nothing."],
];

export function helpDialog() {
  const close = h("button", { type: "button", class: "act" }, "Close");
  const dialog = h(
    "dialog", { class: "help", "aria-label": "Help" },
    h("h2", {}, "Keys"), h(
      "dl", { class: "keys" },
      ...KEYS.map(([key, does]) => h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, does))),
    ),
    h("h2", {}, "Signs"), h("ul", { class: "legend wide" }, ...SIGNS.map(([name, words]) => h("li", {}, sign(name), words))),
    h("h2", {}, "Words"), h("dl", { class: "keys" }, ...WORDS.map(([word, means]) => h("div", {}, h("dt", {}, word), h("dd", {}, means)))),
    close,
  );
  close.addEventListener("click", () => dialog.close());
  return { element: beside(dialog), open: () => (dialog.open ? dialog.close() : dialog.show()) };
}
