/** The console: puts the parts together, goes from page to page, draws when something came. */

import { accountDialog } from "./account.js";
import { actionRail, whyNot } from "./actions.js";
import { alarmPage } from "./alarms.js";
import { Connection, Refused } from "./connection.js";
import { devicePage } from "./devices.js";
import { h, mark, show } from "./dom.js";
import { helpDialog } from "./help.js";
import { interlockPage } from "./interlocks.js";
import { listenToKeys } from "./keys.js";
import { logPage } from "./log.js";
import { overviewPage } from "./overview.js";
import { makePace } from "./pace.js";
import { peoplePage } from "./people.js";
import { planPage } from "./plans.js";
import { roomPage } from "./room.js";
import { PAGES, makeShell } from "./shell.js";
import { signInPage } from "./signin.js";
import { Stream } from "./stream.js";
import { treatmentPage } from "./treatments.js";
import { trendPage } from "./trends.js";
import { commanderOf, lost, sentence } from "./words.js";

const LAST_ROOM = "iongantry.room";
const LOOK_MS = 3000; // at the rooms that are not open

const connection = new Connection();
let stream = null;
let facility = null;
let served = []; // names of the rooms that are served
let others = new Map(); // views of rooms that are not open
let page = "facility";
let told = ""; // what was drawn at once
let looked = -Infinity;

const room = () => stream?.room ?? [localStorage.getItem(LAST_ROOM), served[0]].find((name) => name && (!served.length || served.includes(name))) ?? null;
const store = () => stream?.store ?? null;

/** What the parts may ask for. */
const desk = {
  room,
  person: () => connection.person,
  signed: () => connection.signedIn,
  facility: () => facility?.name ?? "",
  species: () => facility?.species ?? [],
  holds: () => room() !== null && connection.holds(room()),
  may: (name) => why(name) === "",
  why: (name) => why(name),
  offered: (name) => OFFERED.has(why(name)) || name === "enter_service" && /commands this room$/.test(why(name)),
  say: (words, tone, hint, kind) => shell.say(words, { tone, hint, kind }),
  again: () => pace.acted(),
  help: () => help.open(),
  account: () => account.open(),
  passwordChanged: () => connection.passwordChanged(),
  signOut: () => connection.signOut(),
  stop: (which, late) => connection.stop(which, late),
  ask: (path) => quietly(`read ${path.split("?")[0]}`, () => connection.get(path)),
  file: (path, kind) => quietly("file", () => connection.file(path, kind)),
  upload: (path, file) => once(path, () => quietly(path, () => connection.upload(path, file))),
  change: (method, path, body) => once(`${method} ${path}`, () => quietly(
    `${method} ${path}`, async () => (await (method === "DELETE" ? connection.delete(path) : connection.post(path, body))) ?? true,
  )),
  async send(name, args, acted) {
    const view = store()?.view;
    if (!view) return null;
    const act = () => quietly(name, () => connection.command(room(), view.boot_id, name, args, acted));
    try {
      if (AGAIN.has(name)) return await act();
      pace.acted(); // its button goes out of reach
      return await once(name, act);
    } finally {
      pace.acted();
    }
  },
  idle() {
    if (!connection.signedIn) return "Sign in to see the rooms.";
    const view = store()?.view;
    if (!view || store().stale) return "No fresh view of the room.";
    if (!connection.holds(view.room)) {
      const { control } = view;
      return control ? `${commanderOf(control)}${lost(control) ? "" : " this room"}.` : "Take control to command this room.";
    }
    return idleWords(view);
  },
  rooms() {
    const all = facility?.rooms ?? served.map((name) => ({ name }));
    const list = Array.isArray(all) ? all : Object.entries(all).map(([name, more]) => ({ name, ...more }));
    return list.map((one) => {
      const name = one.name ?? one.room ?? one;
      const open = stream?.room === name ? stream.store : others.get(name);
      return {
        room: name, kind: one.kind ?? "", served: one.served ?? served.includes(name), view: open?.view ?? null,
        stale: open?.stale ?? true,
      };
    });
  },
};

function idleWords({ state, treatment, interlocks, alarms }) {
  if (state.startsWith("irradiating")) return "Nothing to answer. F8 pauses the beam, STOP ends it.";
  const idle = state === "standby" && !["loaded", "running"].includes(treatment?.status);
  const cutOff = idle && alarms.find((alarm) => alarm.active && alarm.id.includes("cut_off"));
  if (cutOff) return sentence(`${cutOff.text}.`);
  if (interlocks.active_trips) return "An interlock stands: its advice says what to do.";
  if (state === "interrupted") return "The room waits until every condition holds again.";
  if (idle) return "Choose a plan to begin.";
  if (state === "fault") return "Causes have to go; then acknowledge the fault.";
  return "Nothing to answer now.";
}

const UNDER_WAY = "under way";
const OFFERED = new Set(["", UNDER_WAY]);
const AGAIN = new Set(["jog", "pause"]); // each press counts: a held button, and beam off
const underWay = new Set();

/** What is under way is not sent a second time. */
async function once(name, act) {
  if (underWay.has(name)) return null;
  underWay.add(name);
  try {
    return await act();
  } finally {
    underWay.delete(name);
  }
}

const why = (name) => underWay.has(name) ? UNDER_WAY : whyNot(store()?.view, connection.person, room() !== null && connection.holds(room()), name, store()?.stale ?? true);

/** `kind`: of what is done; what it is refused with stands until the next of its kind is accepted, and no longer than is told in the shell. */
async function quietly(kind, act) {
  try {
    const answer = await act();
    shell.accepted(kind);
    return answer;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (connection.signedIn) shell.say(error.message, { tone: "bad", hint: error.hint, kind }); // else the sign-in says why
    return null;
  }
}

const shell = makeShell(desk);
const rail = actionRail(desk);
const help = helpDialog();
const account = accountDialog(desk);
const entrance = signInPage(connection);
const pages = {
  facility: overviewPage(desk), room: roomPage(desk), interlocks: interlockPage(desk), devices: devicePage(), alarms: alarmPage(desk), plans: planPage(desk),
  treatments: treatmentPage(desk), trends: trendPage(desk), log: logPage(desk), people: peoplePage(desk),
};
const main = h("main", { id: "main", tabindex: "-1" }, entrance.element, ...Object.values(pages).map((one) => one.element));
document.body.append(shell.header, shell.strip, main, shell.live, rail.element, help.element, account.element);

listenToKeys({
  stop: () => rail.stop.stop(),
  stopHeld: (part) => rail.stop.held(part),
  pause: (acted) => rail.pause(acted),
  answerDown: (acted) => rail.question.down(acted),
  answerUp: () => rail.question.up(),
  page: (number) => PAGES[number - 1] && connection.signedIn && go(PAGES[number - 1][0]),
  help: () => help.open(),
});

const go = (name) => (location.hash = name === "facility" ? "#/facility" : `#/${name}/${room() ?? ""}`);

/** Something new is known. The title is told also while the page is not looked at: it is what its tab shows. */
function changed() {
  const news = newsOf(store() ?? {});
  if (news === told) pace.came();
  else pace.acted();
  told = news;
  if (document.hidden) shell.title(store());
}

/** What a person has to see at once. */
function newsOf({ stale, view }) {
  if (!view) return "";
  const { state, question, interlocks, alarms } = view;
  return [stale, state, question?.challenge, interlocks.first_out?.id, interlocks.active_trips, alarms.length].join();
}

function open(name) {
  if (stream?.room === name) return;
  stream?.close();
  stream = new Stream(connection, name, changed);
  localStorage.setItem(LAST_ROOM, name);
}

/** Show what the address says, `#/page/room` and, for a treatment, its id; the id is returned. */
function place() {
  const [, name, where, more] = location.hash.split("/").map(decodeURIComponent);
  page = pages[name] ? name : "facility";
  if (connection.signedIn) {
    if (where && where !== room()) open(where);
    else if (!where && stream && served.length && !served.includes(stream.room)) open(served[0]); // it was served when it was left
    else if (!stream && room() !== null) open(room());
  }
  for (const [one, { element }] of Object.entries(pages)) show(element, connection.signedIn && one === page);
  entrance.open(!connection.signedIn);
  mark(document.body, "data-page", connection.signedIn ? page : "entrance");
  pace.acted();
  return more;
}

async function route() {
  const more = place();
  if (connection.signedIn) await pages[page].enter?.(more);
}

/** After signing in or out. */
async function signed() {
  others = new Map();
  if (!connection.signedIn) {
    shell.hush();
    stream?.close();
    stream = null;
    facility = null;
    place(); // the form is there at once, also while the console is started again
    served = await connection.roomsServed(); // so that STOP knows its room before anybody signed in
    await route();
    return;
  }
  place(); // the room shows itself while the list of rooms is still asked for
  await look();
  await route();
}

async function look() {
  looked = performance.now();
  const [about, rooms] = await Promise.all([
    facility ?? connection.get("/api/facility").catch(() => null), connection.get("/api/rooms").catch(() => null),
  ]);
  facility = about;
  if (rooms !== null) {
    served = (rooms.rooms ?? rooms).filter((one) => typeof one === "string" || one.served !== false).map((one) => one.room ?? one.name ?? one);
  }
  for (const name of served) {
    if (name === stream?.room) continue;
    const view = await connection.get(`/api/rooms/${encodeURIComponent(name)}`).catch(() => null);
    others.set(name, { view, stale: view === null });
  }
  changed();
}

/** Draw only what is in sight. */
const pace = makePace(() => {
  shell.update(store(), page);
  rail.update(store());
  if (connection.signedIn) pages[page].update(store());
});

let due = 0;
setInterval(() => {
  if (!connection.signedIn || document.hidden) return;
  if (performance.now() - looked > LOOK_MS) look();
  const { every, enter, refresh } = pages[page];
  due += 500;
  if (every && due >= every) {
    due = 0;
    (refresh ?? enter)();
  }
}, 500);

// A screen of a control room does not go dark, and is not left by mistake while beam is on.
const stayAwake = () => document.hidden || navigator.wakeLock?.request("screen").catch(() => null);
document.addEventListener("visibilitychange", stayAwake);
stayAwake();
window.addEventListener("beforeunload", (event) => {
  if (desk.holds() && store()?.view?.state.startsWith("irradiating")) event.preventDefault();
});

window.addEventListener("hashchange", route);
connection.addEventListener("signed", signed);
signed();
