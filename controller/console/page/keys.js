/** Keys that work wherever the focus is. Function keys, so that they also work while something is typed. */

const STOP_HELD_MS = 500;

export const KEYS = [
  ["Esc", "held for half a second: STOP"],
  ["Ctrl + Shift + X", "STOP at once"],
  ["F8", "pause the beam"],
  ["F9", "held for one second: beam on, resume; pressed: answer the question that is asked"],
  ["1 … 9", "the pages above"],
  ["?", "this list"],
  ["Tab, Enter, Space", "go from button to button, press"],
];

/** `acts`: {stop, stopHeld(part), pause, answerDown, answerUp, page(number), help}. */
export function listenToKeys(acts) {
  let escape = null;
  const giveUp = () => {
    if (escape !== null) clearInterval(escape);
    escape = null;
    acts.stopHeld(0);
  };
  window.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      if (event.repeat || escape !== null) return;
      const at = performance.now();
      escape = setInterval(() => {
        const part = Math.min(1, (performance.now() - at) / STOP_HELD_MS);
        acts.stopHeld(part);
        if (part < 1) return;
        giveUp();
        acts.stop(performance.now());
      }, 16);
    } else if (event.ctrlKey && event.shiftKey && event.code === "KeyX") {
      event.preventDefault();
      if (!event.repeat) acts.stop(performance.now());
    } else if (event.key === "F8") {
      event.preventDefault();
      if (!event.repeat) acts.pause(performance.now());
    } else if (event.key === "F9") {
      event.preventDefault();
      if (!event.repeat) acts.answerDown(performance.now());
    } else if (!event.ctrlKey && !event.altKey && !event.metaKey && !types(event.target)) {
      if (event.key === "?") acts.help();
      else if (/^[1-9]$/.test(event.key)) acts.page(Number(event.key));
    }
  });
  window.addEventListener("keyup", (event) => {
    if (event.key === "Escape") giveUp();
    if (event.key === "F9") acts.answerUp();
  });
  window.addEventListener("blur", () => {
    giveUp();
    acts.answerUp();
  });
}

const types = (element) => element instanceof HTMLElement && (element.matches("input, textarea, select") || element.isContentEditable);
