/** The interlocks: what tripped first on top, with value, limit and what to do; reset by its role; bypass by two people. */

import { enable, h, keyed, mark, panel, put, show, sign } from "./dom.js";
import { clock, lost, roleOf, sentence, timeOfDay } from "./words.js";

/** The panel of the room's screen: the first-out and what stands besides. */
export function interlockPanel(desk) {
  const clear = h("p", { class: "clear" }, sign("ticked"), h("span", {}));
  const list = h("ol", { class: "trips" });
  const hidden = belowEdge(list);
  const rest = h("p", { class: "soft trips-rest" });
  const reset = makeReset(desk);
  const element = panel("Interlocks", { class: "interlocks" }, clear, list, rest, reset.element);
  const tally = h("span", { class: "soft" });
  let shown = "";
  element.querySelector("h2").append(" ", tally, hidden.element);
  return {
    element,
    update(view, good) {
      const trips = tripsOf(view.interlocks);
      const { relay_closed: closed, rest_unknown: unknown, withheld = [], silent = false } = view.interlocks;
      show(clear, trips.length === 0 || !good);
      const known = good && !silent;
      clear.firstChild.as(!known ? "unknown" : closed ? "ticked" : "off");
      mark(clear, "data-tone", !known ? "unknown" : closed ? "ready" : "warn");
      const why = withheld.length ? `no trip; permit withheld by ${withheld.join(", ")}` : "no trip; permit not yet given";
      put(clear.lastChild, !known ? "not known" : closed ? "no interlock stands; permit given" : why);
      show(rest, good && Boolean(unknown));
      put(rest, unknown ? `Only the first-out is known, the rest is not: ${unknown}.` : "");
      mark(element, "data-tripped", good && (silent || trips.length > 0));
      put(tally, !good ? "" : silent ? "the interlock system does not answer" : trips.length ? `${view.interlocks.active_trips} active` : "");
      const top = good && trips.length ? keyOf(trips[0]) : "";
      keyed(list, good ? trips : [], keyOf, () => hidden.watch(makeTrip()), (row, trip) => row.update(trip, view));
      if (top !== shown) list.scrollTop = 0; // another first-out: a list that was scrolled down would hide it
      shown = top;
      hidden.update();
      reset.update(view, good);
    },
  };
}

/** The page: the same at length, with bypasses. */
export function interlockPage(desk) {
  const part = interlockPanel(desk);
  const bypass = bypassPanel(desk);
  const element = h("div", { class: "page two" }, part.element, bypass.element);
  return {
    element,
    update(store) {
      if (!store?.view) return;
      mark(element, "data-stale", store.stale);
      part.update(store.view, !store.stale);
      bypass.update(store.view, !store.stale);
    },
  };
}

/** First-out first; what tripped the room stands behind what the interlock system shows. */
export function tripsOf({ first_out: first, trips, room_causes: causes }) {
  const all = [...trips];
  if (first && !all.some((trip) => trip.id === first.id)) all.unshift({ ...first, first_out: true });
  for (const cause of causes) if (!all.some((trip) => trip.id === cause.id)) all.push({ ...cause, first_out: all.length === 0 });
  const one = first?.id ?? all[0]?.id; // the one that the strip names, and no other
  return all.map((trip) => ({ ...trip, first_out: trip.id === one })).sort((a, b) => Number(b.first_out) - Number(a.first_out));
}

const keyOf = (trip) => `${trip.source} ${trip.id}`;

function makeTrip() {
  const badge = h("span", { class: "chip" });
  const when = h("span", { class: "number trip-time" });
  const id = h("span", { class: "soft trip-id" });
  const cause = h("strong", { class: "trip-cause" });
  const value = h("span", { class: "trip-value" });
  const advice = h("p", { class: "trip-advice" });
  const who = h("span", { class: "soft trip-reset" });
  const row = h(
    "li", { class: "trip" }, h("div", { class: "trip-head" }, sign("cross"), cause),
    h("div", { class: "trip-line" }, badge, when, id, value, who), advice,
  );
  row.update = (trip, view) => {
    const at = timeOfDay(trip.t_ns, view);
    put(when, at && `${at} UTC`);
    mark(row, "data-first", trip.first_out);
    put(cause, sentence(trip.cause));
    put(badge, trip.first_out ? "first out" : "follows");
    put(id, trip.id);
    put(value, [trip.value && `value ${trip.value}`, trip.limit && `limit ${trip.limit}`].filter(Boolean).join(", "));
    put(advice, sentence(trip.advice));
    put(who, [trip.latched && "latched", trip.reset_role && `reset: ${roleOf(trip.reset_role)}`].filter(Boolean).join(", "));
  };
  return row;
}

/** How many rows of a list that scrolls are below its edge; a press shows them. The browser tells it: nothing is measured. */
function belowEdge(list) {
  const unseen = new Set();
  const element = h("button", { type: "button", class: "small more", hidden: true });
  element.addEventListener("click", () => [...unseen].find((row) => row.isConnected)?.scrollIntoView({ block: "nearest" }));
  const update = () => {
    for (const row of unseen) if (!row.isConnected) unseen.delete(row);
    show(element, unseen.size > 0);
    put(element, `${unseen.size} more`);
  };
  const observer = new IntersectionObserver((entries) => {
    for (const { target, intersectionRatio, rootBounds, boundingClientRect } of entries) {
      if (intersectionRatio < 0.6 && (rootBounds?.height ?? 0) > 0 && boundingClientRect.height > 0) unseen.add(target);
      else unseen.delete(target);
    }
    update();
  }, { root: list, threshold: [0, 0.3, 0.6, 0.9] });
  return {
    element,
    update,
    watch(row) {
      observer.observe(row);
      return row;
    },
  };
}

function makeReset(desk) {
  async function press() {
    const answer = await desk.send("reset_interlock", {}, performance.now());
    if (answer === null) return;
    const [left] = answer.value?.standing ?? [];
    if (left) desk.say(`Still stands: ${sentence(left.cause)}`, "bad", sentence(left.advice), "reset_interlock");
    else desk.say("Reset: no interlock stands");
  }

  const name = h("span", {});
  const button = h("button", { type: "button", class: "act", on: { click: press } }, name);
  const words = h("span", { class: "soft" });
  const element = h("div", { class: "row reset", hidden: true }, button, words);
  return {
    element,
    update(view, good) {
      const roles = [...new Set(tripsOf(view.interlocks).filter((trip) => trip.reset_role).map((trip) => trip.reset_role))];
      show(element, good && roles.length > 0);
      put(name, roles.length === 1 && roles[0] === "key" ? "Have the key turned" : "Reset");
      put(words, roles.length === 1 && roles[0] === "key" ? "at the key switch" : `by ${roles.map(roleOf).join(", then by ")}`);
      const mine = roles.includes("key") || roles.includes(desk.person()?.role); // a key is turned by whoever stands there
      const { control } = view; // who commands presses for that role; another console only for a role that is not there
      const theirs = control && !lost(control) && !desk.holds() && (control.role === desk.person()?.role || !roles.includes(desk.person()?.role));
      if (mine && theirs) enable(button, false, `${control.console} commands this room`);
      else enable(button, mine && desk.may("reset_interlock"), mine ? desk.why("reset_interlock") : `by ${roles.map(roleOf).join(", then by ")}`);
    },
  };
}

function bypassPanel(desk) {
  const list = h("ul", { class: "bypasses" });
  const none = h("p", { class: "soft" }, "No bypass. One can be asked for by service and approved by a physicist, in service mode only.");
  const which = h("input", { name: "interlock", required: true, maxlength: "40", autocomplete: "off", spellcheck: "false" });
  const reason = h("input", { name: "reason", required: true, maxlength: "200", autocomplete: "off" });
  const minutes = h("input", { name: "minutes", type: "number", min: "1", max: "480", value: "30", required: true });
  const ask = h("button", { type: "submit", class: "act" }, "Ask for bypass");
  const form = h("form", { class: "form" }, label("Interlock", which), label("Reason", reason), label("Minutes", minutes), ask);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    desk.send(
      "request_bypass",
      { interlock: which.value.trim(), reason: reason.value.trim(), duration_s: Number(minutes.value) * 60 },
      performance.now(),
    );
  });
  const element = panel("Bypass", { class: "bypass-panel" }, none, list, form);
  return {
    element,
    update(view, good) {
      const { bypasses } = view.interlocks;
      show(none, bypasses.length === 0);
      keyed(list, bypasses, (one) => one.interlock, () => makeBypass(desk), (row, one) => row.update(one, good));
      enable(ask, desk.may("request_bypass"), desk.why("request_bypass"));
      show(form, Boolean(view.commands.request_bypass));
    },
  };
}

function makeBypass(desk) {
  const words = h("span", {});
  const left = h("b", { class: "number" });
  let which = "";
  const send = (name) => desk.send(name, { interlock: which }, performance.now());
  const approve = h("button", { type: "button", class: "act", on: { click: () => send("approve_bypass") } }, "Approve");
  const end = h("button", { type: "button", class: "act", on: { click: () => send("end_bypass") } }, "End");
  const row = h("li", {}, sign("bypass"), words, left, approve, end);
  row.update = (bypass, good) => {
    which = bypass.interlock;
    put(
      words,
      `${bypass.interlock}: ${bypass.reason} (${bypass.owner}${bypass.approver ? `, approved by ${bypass.approver}` : ", waits for a physicist"})`,
    );
    put(left, good ? clock(bypass.remaining_s) : "–");
    show(approve, !bypass.approver);
    enable(approve, desk.may("approve_bypass"), desk.why("approve_bypass"));
    enable(end, desk.may("end_bypass"), desk.why("end_bypass"));
  };
  return row;
}

/** A named field of a form. */
export const label = (words, field) => h("label", {}, h("span", {}, words), field);
