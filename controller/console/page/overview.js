/** The facility: the beam's path from the synchrotron along the line to its rooms, each with its state; rooms that are not served say so. */

import { h, keyed, mark, put, s, show, sign } from "./dom.js";
import { currentBeam } from "./store.js";
import { amount, count, figure, lost, percent, person, stateOf } from "./words.js";

const COLUMN = 250; // of the picture; the cards below have the same columns
const LINE_Y = 84, MOUTH_Y = 212, HEIGHT = 290, R = 48, BEND = 32;

const UNKNOWN = { shape: "unknown", tone: "unknown" };
const SILENT = { word: "No view", meaning: "the room does not answer", ...UNKNOWN };
const ABSENT = { word: "Not served", meaning: "this console has no connection to it; its state is not known", ...UNKNOWN };

export function overviewPage(desk) {
  const picture = s("svg", { class: "site", role: "img" });
  const source = sourceCard();
  const cards = h("div", { class: "cards" });
  const row = h("div", { class: "site-cards" }, source.element, cards);
  const element = h("div", { class: "page overview" }, h("section", { class: "site-panel", "aria-label": "Beam path" }, picture), row);
  const stations = new Map();
  let drawn = "";
  let ring = null;

  function build(rooms) {
    stations.clear();
    const middle = (column) => COLUMN * (column + 0.5);
    mark(picture, "viewBox", `0 0 ${COLUMN * (rooms.length + 1)} ${HEIGHT}`);
    row.style.gridTemplateColumns = `repeat(${rooms.length + 1}, minmax(0, 1fr))`;
    ring = s("g", { class: "accelerator" }, s(
      "circle", { cx: middle(0), cy: LINE_Y + 46, r: 80, class: "synchrotron" },
    ), s("circle", { cx: middle(0), cy: LINE_Y + 46, r: 66, class: "synchrotron-in" }),
      s("text", { x: middle(0), y: LINE_Y + 42, class: "site-name" }, "Synchrotron"), s("text", { x: middle(0), y: LINE_Y + 62, class: "site-note" }));
    const start = `M ${middle(0) + 66} ${LINE_Y}`;
    const children = [ring, s("path", { class: "line", d: `${start} H ${middle(rooms.length) - BEND}` })];
    rooms.forEach((room, index) => {
      const x = middle(index + 1);
      const path = s("path", { class: "line", d: `${start} H ${x - BEND} Q ${x} ${LINE_Y} ${x} ${LINE_Y + BEND} V ${MOUTH_Y - R}` });
      const mouth = room.kind === "gantry" ? s(
        "circle", { cx: x, cy: MOUTH_Y, r: R, class: "mouth" },
      ) : s("rect", { x: x - R, y: MOUTH_Y - R, width: 2 * R, height: 2 * R, rx: 6, class: "mouth" });
      const nozzle = s(
        "path",
        {
          d: `M ${x - 11} ${MOUTH_Y - R + 3} h 22 l -6 17 h -10 Z M ${x - 0.8} ${MOUTH_Y - R + 22} h 1.6 v ${R - 26} h -1.6 Z`,
          class: "mouth-nozzle",
        },
      );
      const name = s("text", { x: x + R + 24, y: MOUTH_Y + 5, class: "site-name" }, room.room);
      const body = s(
        "g", { class: "lying" }, s("ellipse", { cx: x, cy: MOUTH_Y + 2, rx: 17, ry: 5.5 }),
        s("path", { d: `M ${x - 21} ${MOUTH_Y + 8} h 42` }),
      );
      stations.set(room.room, { path, mouth, nozzle, x });
      children.push(path, mouth, body, nozzle, name);
    });
    picture.replaceChildren(...children);
  }

  return {
    element,
    update() {
      const rooms = desk.rooms();
      const shape = rooms.map((room) => `${room.room}${room.kind}`).join();
      if (shape !== drawn) {
        build(rooms);
        drawn = shape;
      }
      if (ring === null) return;
      let [beamTo, openTo] = [null, null];
      for (const { room, view, stale } of rooms) {
        const good = Boolean(view) && !stale;
        const { path, mouth, nozzle, x } = stations.get(room);
        const beam = good && view.delivery.beam_present;
        const open = good && view.checklist.some((item) => item.name === "route_open" && item.done);
        if (beam) beamTo = room;
        if (open) openTo = room;
        mark(path, "class", `line${open ? " open" : ""}${beam ? " beam" : ""}`);
        mark(mouth, "data-tone", good ? stateOf(view.state).tone : "unknown");
        mark(nozzle, "transform", good ? `rotate(${view.gantry.fixed_deg ?? view.gantry.angle_deg ?? 0} ${x} ${MOUTH_Y})` : null);
        show(nozzle, good);
      }
      const where = beamTo ? `beam to ${beamTo}` : openTo ? `path open to ${openTo}` : "no beam";
      put(ring.lastChild, where);
      mark(ring, "class", beamTo ? "accelerator beam" : "accelerator");
      mark(picture, "aria-label", `Synchrotron, line, rooms ${rooms.map((room) => room.room).join(", ")}; ${where}`);
      source.update(rooms.find((room) => room.room === (beamTo ?? openTo)), where, desk.species());
      keyed(cards, rooms, (room) => room.room, makeCard, (card, room) => card.update(room));
    },
  };
}

function sourceCard() {
  const where = h("strong", { class: "state-word" });
  const ion = h("dd"), energy = h("dd"), spill = h("dd"), ions = h("dd");
  const facts = h(
    "dl", { class: "facts wide" },
    ...[
      ["Ion", ion], ["Energy", energy], ["Spill", spill], ["Ions to choose", ions],
    ].map(([name, value]) => h("div", {}, h("dt", {}, name), value)),
  );
  const element = h("section", { class: "panel card source" }, h("h2", {}, "Accelerator and line"), where, facts);
  return {
    element,
    update(room, words, species) {
      const delivery = room && !room.stale ? room.view?.delivery : null;
      put(where, words.charAt(0).toUpperCase() + words.slice(1));
      put(ion, delivery?.species || "–");
      put(energy, delivery && delivery.energy_mev_u !== null ? `${figure(delivery.energy_mev_u, 1)} MeV/u` : "–");
      put(spill, delivery && delivery.spill !== null ? count(delivery.spill) : "–");
      put(ions, species.join(", ") || "–");
    },
  };
}

function makeCard() {
  const picture = sign("ring");
  const title = h("h2", {});
  const word = h("strong", { class: "state-word" });
  const what = h("p", { class: "soft" });
  const patient = h("p", { class: "card-patient" });
  const beam = h("p", { class: "number" });
  const fill = h("span", { class: "meter-fill" });
  const meter = h("div", { class: "meter slim", "aria-hidden": "true" }, fill);
  const news = h("p", { class: "card-news" });
  const open = h("a", { class: "act main" });
  const card = h(
    "section", { class: "panel card" }, title, h("div", { class: "card-state" }, picture, word), what, patient, beam,
    meter, news, open,
  );
  card.update = (one) => {
    const { view } = one;
    const good = Boolean(view) && !one.stale;
    const state = good ? stateOf(view.state) : one.served ? SILENT : ABSENT;
    put(title, `${one.room}${one.kind ? `  ${one.kind === "gantry" ? "gantry" : "fixed beam"}` : ""}`);
    mark(card, "data-tone", state.tone);
    mark(card, "data-absent", !good);
    picture.as(state.shape);
    put(word, state.word);
    put(what, good ? view.why || state.meaning : state.meaning);
    const treatment = good ? view.treatment : null;
    put(
      patient,
      treatment ? `${person(treatment.patient_name)}, ${treatment.plan_label}, fraction ${treatment.fraction}` : good ? "no plan loaded" : "",
    );
    const current = currentBeam(treatment);
    put(
      beam,
      current ? `beam ${current.number} at ${figure(current.gantry_angle_deg, 0)}°, ${percent(
        current.meterset_delivered, current.meterset_planned, current.status === "complete",
      )}` : "",
    );
    show(meter, Boolean(current));
    if (current) fill.style.transform = `scaleX(${current.meterset_planned > 0 ? Math.min(
      1, current.meterset_delivered / current.meterset_planned,
    ).toFixed(4) : 0})`;
    const alarms = good ? view.alarms.filter((alarm) => !alarm.acknowledged_by && !alarm.shelved_s).length : 0;
    put(
      news,
      !good ? "" : [
        `${amount(view.interlocks.active_trips, "interlock")} ${view.interlocks.active_trips === 1 ? "stands" : "stand"}`, amount(alarms, "alarm"),
        view.control ? `commanded from ${view.control.console}${lost(view.control) ? ", which is not heard" : ""}` : "nobody commands it",
      ].join(", "),
    );
    show(open, one.served);
    put(open, `Open ${one.room}`);
    mark(open, "href", `#/room/${one.room}`);
  };
  return card;
}
