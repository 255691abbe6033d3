/** Moving an axis by hand: it moves while the button is held, and a drive that does not hear of it again within 200 ms stops. */

import { enable, h, show } from "./dom.js";
import { axisOf } from "./words.js";

const AGAIN_MS = 100;
const MOST_WAITING = 2; // for an answer: one that is slow does not let go of the drive

/** `what`: "gantry" or "couch". */
export function jogHandle(desk, what) {
  const axis = what === "gantry" ? null : h("select", { "aria-label": "Axis to move" });
  const back = h("button", { type: "button", class: "small jog" }, what === "gantry" ? "↺" : "−");
  const forth = h("button", { type: "button", class: "small jog" }, what === "gantry" ? "↻" : "+");
  for (const [button, words] of [
    [back, what === "gantry" ? "anticlockwise" : "down"], [forth, what === "gantry" ? "clockwise" : "up"],
  ]) button.setAttribute("aria-label", `hold to move ${words}`);
  const element = h("div", { class: "jogs", hidden: true }, axis, back, forth, h("span", { class: "soft" }, "hold"));
  let timer = 0;
  let waiting = 0;

  async function push(direction) {
    if (waiting >= MOST_WAITING) return;
    waiting += 1;
    const pressed = timer;
    const moved = await desk.send("jog", { axis: axis?.value ?? "gantry", direction }, performance.now());
    waiting -= 1;
    if (pressed !== timer || (moved && moved.value?.moving !== false)) return;
    if (moved) desk.say("The motion has ended", "plain", "press again to go on");
    stop();
  }
  function start(direction) {
    stop();
    timer = setInterval(() => push(direction), AGAIN_MS);
    push(direction);
  }
  function stop() {
    clearInterval(timer);
    timer = 0;
  }
  for (const [button, direction] of [[back, -1], [forth, 1]]) {
    button.addEventListener("pointerdown", (event) => event.button === 0 && !button.disabled && start(direction));
    for (const kind of ["pointerup", "pointerleave", "pointercancel", "blur"]) button.addEventListener(kind, stop);
    button.addEventListener("keydown", (event) => {
      if ((event.key === " " || event.key === "Enter") && !event.repeat && !button.disabled) start(direction);
    });
    button.addEventListener("keyup", stop);
  }
  window.addEventListener("blur", stop);
  for (const kind of ["visibilitychange", "pagehide"]) document.addEventListener(kind, stop, true); // whoever looks elsewhere holds nothing

  return {
    element,
    update(view, good) {
      const offered = Boolean(view.commands.jog) && !(what === "gantry" && view.gantry.fixed_deg !== null);
      const may = good && desk.may("jog");
      show(element, offered && may);
      if (!may) stop();
      if (axis && axis.options.length !== view.couch.length) axis.replaceChildren(...view.couch.map((one) => h("option", { value: one.name }, axisOf(one.name))));
      for (const button of [back, forth]) enable(button, may, desk.why("jog"));
    },
  };
}
