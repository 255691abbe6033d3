/**
 * When to draw: once for all that came together, at most ten times a second; at once when a person acted or has to act. A computer
 * that does not keep up draws less often, not ever later. Nothing stands in a loop: a page to which nothing came costs nothing, and
 * one that nobody sees is drawn when it is looked at again.
 * Not responsible for what has to be told also while nobody looks (main.js: the title).
 */

const APART_MS = 100; // views come as often; more can nobody read
const MOST_APART_MS = 800; // what has to be seen at once is drawn at once anyway: see `acted`
const SHARE = 4; // a page leaves the computer to others for so many times as long as a drawing took

/** `draw()` brings the page up to date. `came()`: something new is known; `acted()`: a person waits for it. */
export function makePace(draw) {
  let timer = 0;
  let frame = 0;
  let due = -Infinity; // when the last drawing was due: it is drawn a little later, and that must not add up
  let apart = APART_MS;

  function run() {
    frame = 0;
    draw();
    apart = document.hidden ? APART_MS : Math.min(MOST_APART_MS, Math.max(APART_MS, SHARE * (performance.now() - due)));
  }
  function ask(at) {
    clearTimeout(timer);
    [timer, due] = [0, at];
    frame ||= requestAnimationFrame(run);
  }
  return {
    came() {
      if (frame || timer) return;
      const [now, next] = [performance.now(), due + apart];
      if (next <= now) ask(now);
      else timer = setTimeout(() => ask(next), next - now);
    },
    acted: () => ask(performance.now()),
  };
}
