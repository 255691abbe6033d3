/**
 * The stream of one open room: views, events, layers of spots; connects again by itself; says that this console is alive.
 * A room whose view does not come, or whose count stands still, is stale after one second.
 */

import { RoomStore } from "./store.js";

export const STALE_MS = 1000;
const AGAIN_MS = [200, 400, 800, 1500];
const OPEN_TIMEOUT_MS = 4000;

export class Stream {
  #socket = null;
  #attempt = 0;
  #timer = 0;
  #ticker;
  #closed = false;
  #asked = null; // the plan that was asked for

  /** `changed(store)` is called when something new came, or when the room became stale. */
  constructor(connection, room, changed) {
    this.connection = connection;
    this.room = room;
    this.store = new RoomStore(room);
    this.changed = changed;
    // A worker ticks also while the page is in the background: timers of a hidden page stand nearly still.
    this.#ticker = new Worker("/page/ticker.js");
    this.#ticker.onmessage = () => this.#tick();
    this.#open();
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#ticker.terminate();
    this.#socket?.close();
  }

  #open() {
    if (this.#closed) return;
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/api/rooms/${encodeURIComponent(this.room)}/stream`);
    this.#socket = socket;
    const slow = setTimeout(() => socket.close(), OPEN_TIMEOUT_MS);
    socket.onopen = () => {
      clearTimeout(slow);
      socket.send(JSON.stringify({ kind: "hello", token: this.connection.token, console: this.connection.console }));
    };
    socket.onmessage = (message) => this.#take(JSON.parse(message.data));
    socket.onclose = (event) => {
      clearTimeout(slow);
      if (this.#closed || socket !== this.#socket) return;
      this.store.link = "away";
      if (event.code === 4401 || event.code === 1008) this.connection.get("/api/me").catch(() => null); // a token that lapsed signs out
      this.#timer = setTimeout(() => this.#open(), AGAIN_MS[Math.min(this.#attempt, AGAIN_MS.length - 1)]);
      this.#attempt += 1;
      this.changed(this.store);
    };
  }

  #take(message) {
    const { store } = this;
    if (message.kind === "view") {
      this.#attempt = 0;
      store.takeView(message.view, performance.now());
      this.#planOf(message.view.treatment);
      const control = message.view.control;
      if (this.connection.holds(this.room) && control?.console !== this.connection.console) this.connection.lost(this.room);
    } else if (message.kind === "spots") store.takeSpots(message.spots);
    else if (message.kind === "event") store.takeEvent(message.event);
    else if (message.kind === "trouble") store.trouble = message.reason;
    else if (message.kind === "lost") this.#spotsAgain();
    else return;
    this.changed(store);
  }

  /** Lines were lost on the way here: a view comes again by itself, a layer of spots does not. */
  async #spotsAgain() {
    const layers = await this.connection.get(`/api/rooms/${encodeURIComponent(this.room)}/spots`).catch(() => []);
    for (const layer of layers) this.store.takeSpots(layer);
    this.changed(this.store);
  }

  /** Of a remainder the treatment tells only what is left: the plan itself tells how much there is in all. */
  async #planOf(treatment) {
    if (!treatment?.remainder || this.#asked === treatment.plan_id) return;
    this.#asked = treatment.plan_id;
    const plan = await this.connection.get(`/api/plans/${encodeURIComponent(treatment.plan_id)}`).catch(() => null);
    if (plan === null) setTimeout(() => (this.#asked = null), STALE_MS); // asked for again with a later view
    else this.store.plan = plan;
    this.changed(this.store);
  }

  #tick() {
    const stale = this.store.ageMs(performance.now()) > STALE_MS;
    if (stale !== this.store.stale || stale) {
      this.store.stale = stale;
      this.changed(this.store);
    }
    // A console that shows nothing fresh does not say that it is alive: the room then pauses.
    const socket = this.#socket;
    if (!stale && socket?.readyState === WebSocket.OPEN && this.connection.holds(this.room)) {
      socket.send(JSON.stringify({ kind: "heartbeat", control_token: this.connection.control[this.room] }));
    }
  }
}
