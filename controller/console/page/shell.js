/** What frames every page: the name of the place, the way from page to page, banners, who commands, who is signed in, messages. */

import { enable, h, keyed, mark, put, s, show, sign } from "./dom.js";
import { BANNERS, commanderOf, lost, roleOf, sentence, stateOf } from "./words.js";

export const PAGES = [
  ["facility", "Facility"],
  ["room", "Room"],
  ["interlocks", "Interlocks"],
  ["devices", "Devices"],
  ["alarms", "Alarms"],
  ["plans", "Plans"],
  ["treatments", "Treatments"],
  ["trends", "Trends"],
  ["log", "Log"],
  ["people", "People"],
];
const SAID_MS = 9000;
const REFUSED_MS = 15000;
const LOOK_AGAIN_MS = 500;
// What a message must not lie on; what it had better not lie on.
const CONTROLS = "a[href], button, input, select, label, [role=slider], .stop-said, .banner";
const SIGHT = ".state, .breathing, .dose, .beam-panel, .interlocks, .question, .spots-map";

/** `desk`: as of the rail, with {person(), holds(), signOut(), help()}. */
export function makeShell(desk) {
  const place = h("span", { class: "place" });
  const links = Object.fromEntries(PAGES.map(([name, label]) => [name, link(name, label)]));
  const banners = h("ul", { class: "banners", "aria-label": "Banners" });
  const control = makeControl(desk);
  const person = h("button", { type: "button", class: "small person", title: "your password", on: { click: () => desk.account() } });
  const out = h("button", { type: "button", class: "small", on: { click: () => desk.signOut() } }, "Sign out");
  const help = h("button", { type: "button", class: "small", title: "keys and words", on: { click: () => desk.help() } }, "Help ?");
  const header = h(
    "header", { class: "top" },
    h(
      "div", { class: "name" },
      s("svg", { class: "logo", viewBox: "0 0 24 24", "aria-hidden": "true" }, s("use", { href: "#sign-logo" })),
      h("strong", {}, "iongantry"), place,
    ),
    h("nav", { "aria-label": "Pages" }, ...Object.values(links).map((one) => one.element)),
    h("div", { class: "who" }, control.element, person, out, help),
  );
  const strip = h("div", { class: "strip" }, banners, firstOutStrip(desk));
  const said = h("div", { class: "said", role: "status", hidden: true });
  const state = h("p", { class: "unseen", role: "status", "aria-live": "polite" });
  const first = h("p", { class: "unseen", role: "alert", "aria-live": "assertive" });
  const trip = strip.lastChild;
  let hide = 0;
  let saying = null; // the kind of what is said
  let refusedWith = new Map(); // kind -> words it was refused with last: what is asked again and again is told once
  let placed = -Infinity;
  let told = 0; // the last event that was looked at

  function quiet() {
    clearTimeout(hide);
    saying = null;
    show(said, false);
  }
  const settle = () => {
    placed = performance.now();
    lay(said);
  };

  return {
    header,
    strip,
    live: h("div", {}, said, state, first),
    say(words, { tone = "plain", hint = "", kind = "" } = {}) {
      if (tone === "bad" && kind.startsWith("read ") && refusedWith.get(kind) === words) return;
      if (tone === "bad") refusedWith.set(kind, words);
      saying = tone === "bad" ? kind : null;
      said.replaceChildren(
        sign(tone === "bad" ? "cross" : "tick"),
        h("p", {}, h("strong", {}, words), hint ? h("span", {}, ` ${hint}`) : ""),
      );
      mark(said, "data-tone", tone);
      show(said, true);
      settle();
      clearTimeout(hide);
      hide = setTimeout(quiet, tone === "bad" ? REFUSED_MS : SAID_MS);
    },
    /** Something of this kind was accepted: what it was refused with before is past. */
    accepted(kind) {
      refusedWith.delete(kind);
      if (saying === kind) quiet();
    },
    hush() {
      refusedWith = new Map();
      quiet();
    },
    update(store, page) {
      const view = store?.view;
      const me = desk.person();
      if (!said.hidden && performance.now() - placed > LOOK_AGAIN_MS) settle();
      keepStill([header, strip], view?.state.startsWith("irradiating") ?? false);
      mark(header, "data-stale", store?.stale && view ? true : null);
      for (const [name, one] of Object.entries(links)) one.update(name === page, desk.room(), badge(name, view), me);
      put(place, view ? view.facility : desk.facility());
      keyed(banners, bannersOf(store), (name) => name, makeBanner, (item, name) => item.update(name, store));
      trip.update(store);
      control.update(store);
      this.tellPresses(store);
      put(person, me ? `${me.name === me.role ? "" : `${me.name}, `}${roleOf(me.role)}` : "");
      mark(person, "data-first", me?.first);
      mark(person, "title", me?.first ? "your password is still the first one: change it" : "your password");
      show(person, me !== null);
      show(out, me !== null);
      if (view) {
        const { word, meaning } = stateOf(view.state);
        // Between beam on and held it goes many times a minute: said once.
        put(
          state,
          store.stale ? "No fresh view of the room" : view.state.startsWith("irradiating") ? `${view.room}: irradiating` : `${view.room}: ${word}, ${meaning}`,
        );
        const cause = firstOut(view);
        put(first, cause && !store.stale ? `First out: ${cause.cause}. ${cause.advice}` : "");
      }
      this.title(store);
    },
    /** Somebody else's hand at the panel of the room that is commanded from here is said, by name. */
    tellPresses(store) {
      const latest = store?.events.at(-1)?.seq ?? 0;
      for (const { seq, kind, data } of store?.events ?? []) {
        if (seq <= told || kind !== "interlock.pressed" || !desk.holds()) continue;
        this.say(`${data.by} (${roleOf(data.role)}) at ${data.console} presses reset: ${data.ids.join(", ")}`, { kind });
      }
      told = latest;
    },
    /** What the tab shows of a page that nobody looks at: the state, and how many alarms nobody has seen. */
    title(store) {
      const { view, stale } = store ?? {};
      if (!view) return;
      const alarms = badge("alarms", view);
      const words = [stale ? "STALE" : stateOf(view.state).word, view.room, alarms && `${alarms} alarm${alarms > 1 ? "s" : ""}`, "iongantry"];
      const title = words.filter(Boolean).join(" · ");
      if (document.title !== title) document.title = title;
    },
  };
}

/** Beam is on: what is above the pages keeps its height, so that nothing moves under a hand. */
function keepStill(parts, still) {
  if (still === (parts[0].dataset.still === "")) return;
  const heights = parts.map((part) => part.offsetHeight);
  parts.forEach((part, index) => {
    part.style.minHeight = still ? `${heights[index]}px` : "";
    mark(part, "data-still", still);
  });
}

/** Put a message where it lies on no control, and if possible on nothing that has to be seen. */
function lay(said) {
  const { offsetWidth: width, offsetHeight: height } = said;
  const boxes = (what) => [...document.querySelectorAll(what)].filter((one) => !said.contains(one) && !one.disabled).map(
    (one) => one.getBoundingClientRect(),
  ).filter((box) => box.width > 0);
  const [controls, sight] = [boxes(CONTROLS), boxes(SIGHT)];
  const area = document.getElementById("main").getBoundingClientRect();
  const step = 16;
  let best = null;
  for (let top = area.bottom - height - 8; top >= area.top; top -= step) {
    for (let left = area.left + 8; left + width <= area.right - 8; left += 2 * step) {
      const on = (list) => list.reduce(
        (total, box) => total + Math.max(0, Math.min(left + width, box.right) - Math.max(left, box.left)) * Math.max(0, Math.min(top + height, box.bottom) - Math.max(top, box.top)),
        0,
      );
      const cost = 1000 * on(controls) + on(sight);
      if (best === null || cost < best.cost) best = { left, top, cost };
      if (cost === 0) break;
    }
    if (best?.cost === 0) break;
  }
  if (best === null) return;
  said.style.left = `${best.left}px`;
  said.style.top = `${best.top}px`;
}

/** What tripped first and still matters: the interlock system's first-out, else what tripped the room. */
export const firstOut = (view) => {
  const { first_out: first, room_causes: causes } = view.interlocks;
  return first ?? causes[0] ?? null;
};

function bannersOf(store) {
  const view = store?.view;
  const shown = new Set(view?.banners ?? []);
  if (view?.simulated) shown.add("SIMULATED");
  if (view?.interlocks.bypasses.some((one) => one.approver)) shown.add("BYPASS");
  if (store?.stale) shown.add("STALE");
  return Object.keys(BANNERS).filter((name) => shown.has(name));
}

function makeBanner(name) {
  const [shape] = BANNERS[name] ?? ["cross"];
  const words = h("span", {});
  const item = h("li", { class: "banner", data: { name } }, sign(shape), h("b", {}, name), words);
  item.update = (_, store) => {
    const age = Math.max(1, Math.round(store.ageMs(performance.now()) / 1000));
    const [, meaning] = BANNERS[name] ?? ["", ""];
    if (name === "STALE" && store?.stale) put(
      words,
      store.view ? `no view of ${store.room} for ${age} s; values are crossed out${store.trouble ? ` (${store.trouble})` : ""}` : `waiting for ${store.room}`,
    );
    else if (name === "SIMULATED") put(
      words, store.view?.speed !== 1 ? `${meaning}; time runs ${store.view?.speed ?? "–"} times as fast` : meaning,
    );
    else put(words, meaning);
  };
  return item;
}

function firstOutStrip(desk) {
  const words = h("span", { class: "trip-words" });
  const element = h("a", { class: "trip-strip", hidden: true }, sign("cross"), h("b", {}, "FIRST OUT"), words);
  element.update = (store) => {
    const cause = store?.view ? firstOut(store.view) : null;
    show(element, cause !== null);
    if (cause === null) return;
    mark(element, "href", `#/interlocks/${desk.room()}`);
    mark(element, "data-stale", store.stale);
    put(words, `${store.stale ? "last seen: " : ""}${[cause.cause, cause.advice].filter(Boolean).map((said) => sentence(said).replace(/\.$/, "")).join(". ")}`);
  };
  return element;
}

function badge(name, view) {
  if (!view) return 0;
  if (name === "alarms") return view.alarms.filter((alarm) => !alarm.acknowledged_by && !alarm.shelved_s).length;
  if (name === "interlocks") return view.interlocks.active_trips;
  if (name === "devices") return view.devices.filter((device) => !device.connected).length;
  return 0;
}

function link(name, label) {
  const number = h("span", { class: "badge", hidden: true });
  const words = h("span", {}, label);
  const element = h("a", {}, words, number);
  return {
    element,
    update(here, room, news, me) {
      mark(element, "href", name === "facility" ? "#/facility" : `#/${name}/${room ?? ""}`);
      mark(element, "aria-current", here ? "page" : null);
      show(element, name !== "people" || me?.role === "security_admin");
      if (name === "room") put(words, room ?? "Room");
      show(number, news > 0);
      put(number, news);
      mark(number, "aria-label", news > 0 ? `${news} ${name}` : null);
    },
  };
}

function makeControl(desk) {
  const words = h("span", {});
  const take = h(
    "button",
    { type: "button", class: "small strong", on: { click: () => desk.send("take_control", {}, performance.now()) } },
    "Take control",
  );
  const give = h(
    "button", { type: "button", class: "small", on: { click: () => desk.send("give_control", {}, performance.now()) } },
    "Give back",
  );
  const element = h("div", { class: "control" }, sign("hand"), words, take, give);
  return {
    element,
    update(store) {
      const view = store?.view;
      show(element, Boolean(view));
      if (!view) return;
      const mine = desk.holds();
      const { control } = view;
      put(
        words,
        mine ? `you command ${view.room}` : control ? commanderOf(control) : `nobody commands ${view.room}`,
      );
      mark(element, "data-tone", mine ? "ready" : control && lost(control) ? "warn" : null);
      mark(element, "title", control ? `heard ${control.heard_ms < 1000 ? "less than 1" : Math.round(control.heard_ms / 1000)} s ago` : null);
      show(take, !mine && Boolean(desk.person()));
      show(give, mine);
      enable(take, desk.may("take_control"), desk.why("take_control"));
      enable(
        give, desk.may("give_control"),
        desk.why("give_control") === "not now" ? "not while the field runs" : desk.why("give_control"),
      );
    },
  };
}
