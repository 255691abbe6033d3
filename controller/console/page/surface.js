/**
 * Canvases that are drawn on when something changed: their size is told by the browser when it changes, never asked for in between
 * (asking makes it lay the whole page out at once). Letters' size and colours of the style sheet for them.
 */

/**
 * A canvas with as many points as the screen has under it. `resized()` is called when it has to be drawn anew.
 * The function that is returned fills it as the panel around it and gives its context and size in CSS pixels; null while it is not on the screen.
 */
export function surfaceOf(canvas, resized) {
  let box = null;
  new ResizeObserver((entries) => {
    const { width, height } = entries.at(-1).contentRect;
    box = width < 2 || height < 2 ? null : { width, height };
    if (box !== null) resized();
  }).observe(canvas);
  return () => {
    if (box === null) return null;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
    const pen = canvas.getContext("2d", { alpha: false }); // what lies behind need not be mixed in
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.fillStyle = ink("sheet");
    pen.fillRect(0, 0, box.width, box.height);
    return { pen, ...box, rem: rem() };
  };
}

let remPx = 0;
window.addEventListener("resize", () => (remPx = 0));

/** The size of one rem in CSS pixels: drawings grow with the letters. */
function rem() {
  return (remPx ||= parseFloat(getComputedStyle(document.documentElement).fontSize) || 16);
}

const inks = new Map();

/** A colour of the style sheet; none of them changes while the page is open. */
export function ink(name) {
  let colour = inks.get(name);
  if (!colour) inks.set(name, (colour = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim()));
  return colour;
}
