/**
 * Deliberate acts: a button or a key that has to be held for a moment. Letting go, leaving the button or the page, or a change of
 * what was asked gives it up.
 */

import { mark } from "./dom.js";

/**
 * Make a button that acts when it was held for `forMs`.
 * `armed()` gives the thing that the act is for (a challenge), or null when there is nothing to do; it must be the same at the end.
 */
export function holdButton(button, { forMs, armed, act, progress }) {
  let begun = null;

  function frame() {
    if (begun === null) return;
    const part = Math.min(1, (performance.now() - begun.at) / forMs);
    if (armed() !== begun.what) return give_up();
    progress?.(part);
    button.style.setProperty("--held", part.toFixed(3));
    if (part < 1) return void (begun.timer = setTimeout(frame, 16));
    const { what } = begun;
    give_up();
    act(what, performance.now());
  }

  function begin() {
    const what = armed();
    if (begun !== null || what === null || button.disabled) return;
    begun = { at: performance.now(), what, timer: 0 };
    mark(button, "data-held", true);
    frame();
  }

  function give_up() {
    if (begun === null) return;
    clearTimeout(begun.timer);
    begun = null;
    mark(button, "data-held", null);
    button.style.setProperty("--held", "0");
    progress?.(0);
  }

  button.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    button.setPointerCapture?.(event.pointerId);
    begin();
  });
  for (const kind of ["pointerup", "pointercancel", "lostpointercapture", "blur"]) button.addEventListener(kind, give_up);
  button.addEventListener("pointermove", (event) => {
    if (begun === null) return;
    const box = button.getBoundingClientRect();
    if (event.clientX < box.left || event.clientX > box.right || event.clientY < box.top || event.clientY > box.bottom) give_up();
  });
  button.addEventListener("keydown", (event) => {
    if ((event.key !== " " && event.key !== "Enter") || armed() === null) return;
    event.preventDefault();
    if (!event.repeat) begin();
  });
  button.addEventListener("keyup", (event) => {
    if (event.key === " " || event.key === "Enter") give_up();
  });
  window.addEventListener("blur", give_up);
  document.addEventListener("visibilitychange", give_up);
  return { begin, giveUp: give_up };
}
