/** Elements, made without HTML: every text is set as text, so nothing that comes from a file can become markup. */

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") for (const [kind, listener] of Object.entries(value)) element.addEventListener(kind, listener);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "value" || name === "checked" || name === "disabled" || name === "hidden") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat()) if (child !== null && child !== undefined && child !== false) element.append(child);
  return element;
}

/** An HTML element: `h("p", {class: "soft", on: {click}}, "words", child)`. */
export const h = (tag, properties, ...children) => fill(document.createElement(tag), properties, children);

/** An SVG element. */
export const s = (tag, properties, ...children) => fill(document.createElementNS(SVG, tag), properties, children);

/** Set a text, and touch the page only when it differs. */
export function put(element, text) {
  const words = text === null || text === undefined ? "" : String(text);
  const only = element.firstChild;
  if (only?.nodeType === Node.TEXT_NODE && only.nextSibling === null) {
    if (only.data !== words) only.data = words; // the same letters' place with other letters
  } else if (only !== null || words) element.textContent = words;
  return element;
}

/** Set an attribute, and touch the page only when it differs; null takes it away. */
export function mark(element, name, value) {
  if (value === null || value === undefined || value === false) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
  } else {
    const words = value === true ? "" : String(value);
    if (element.getAttribute(name) !== words) element.setAttribute(name, words);
  }
  return element;
}

/** Show or hide; by the attribute, because pictures know no property for it. */
export const show = (element, visible) => mark(element, "hidden", !visible);

/** Enable or not; why not is told by the title and to readers of the screen. */
export function enable(button, possible, why = "") {
  if (button.disabled === Boolean(possible)) button.disabled = !possible;
  mark(button, "title", possible ? null : why || null);
  return button;
}

/** Do something with a button out of reach while it is under way. */
export async function during(button, act) {
  enable(button, false, "under way");
  try {
    return await act();
  } finally {
    enable(button, true);
  }
}

/**
 * Keep the children of a container in step with a list: elements stay where their key stays, so focus and selection survive.
 * `make(item)` gives an element; `update(element, item)` brings it up to date.
 */
export function keyed(container, items, key, make, update) {
  const known = (container.keyed ??= new Map());
  const present = new Set();
  let before = null;
  for (const item of items) {
    const name = String(key(item));
    if (present.has(name)) continue;
    present.add(name);
    let element = known.get(name);
    if (element === undefined) known.set(name, (element = make(item)));
    update(element, item);
    const place = before === null ? container.firstChild : before.nextSibling;
    if (place !== element) container.insertBefore(element, place);
    before = element;
  }
  for (const [name, element] of known) {
    if (!present.has(name)) {
      element.remove();
      known.delete(name);
    }
  }
}

/** A panel with a heading: `panel("Gantry", content...)`. */
export function panel(title, properties, ...children) {
  const id = `p-${title.toLowerCase().replace(/[^a-z0-9]+/g, "-")}`;
  return h(
    "section", { ...properties, class: `panel ${properties?.class ?? ""}`, "aria-labelledby": id },
    h("h2", { id }, title), ...children,
  );
}

/** A dialog that never stands between a person and STOP: nothing behind it is locked, and a touch of Esc closes it. */
export function beside(dialog) {
  dialog.addEventListener("keydown", (event) => event.key === "Escape" && dialog.close());
  return dialog;
}

/** A small picture of signs.js's shapes. */
export function sign(name) {
  const use = s("use", { href: `#sign-${name}` });
  const svg = s("svg", { class: "sign", viewBox: "0 0 24 24", "aria-hidden": "true", focusable: "false" }, use);
  svg.as = (other) => mark(use, "href", `#sign-${other}`);
  return svg;
}
