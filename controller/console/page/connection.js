/**
 * The way to the console's server: who is signed in, requests, commands and the stop.
 * Not responsible for the stream of views (stream.js) nor for what is shown.
 */

const KEPT = "iongantry.session"; // per tab: a reload keeps the person signed in and the room's control; a new tab is a new console
const STOP_AGAIN_MS = 300;
const STOP_LATE_MS = 1500;
const STOP_GIVE_UP_MS = 60000;
const TAKING_MS = 2000;
const COMMAND_TIMEOUT_MS = 8000;
const READ_TIMEOUT_MS = 15000;

/** What the server said no with. `status` 0: it did not answer at all. */
export class Refused extends Error {
  constructor(reason, { status = 0, hint = "", code = null } = {}) {
    super(reason);
    Object.assign(this, { status, hint, code });
  }
}

export class Connection extends EventTarget {
  #renewal = 0;
  farewell = ""; // why this person is signed out without having asked for it
  #taken = -Infinity;

  constructor() {
    super();
    const kept = read(sessionStorage);
    this.token = kept.token ?? null;
    this.console = kept.console ?? `desk-${random(4)}`;
    this.person = kept.person ?? null; // {name, role}
    this.control = kept.control ?? {}; // room -> control token
    if (this.token) this.#renewEvery(kept.expires_s ?? 900);
  }

  get signedIn() {
    return this.token !== null;
  }

  async signIn({ name, password, console, role }) {
    const body = { name, password, console, ...(role ? { role } : {}) };
    const answer = await this.#send("POST", "/api/login", { body, signed: false });
    this.token = answer.token;
    this.farewell = "";
    this.console = console;
    this.control = {};
    this.person = {
      name: answer.name ?? name, role: answer.role, roles: answer.roles ?? [answer.role],
      first: Boolean(answer.first_password),
    };
    this.#keep(answer.expires_s);
    this.#renewEvery(answer.expires_s);
    this.dispatchEvent(new Event("signed"));
    return answer;
  }

  async signOut() {
    await this.#send("POST", "/api/logout", {}).catch(() => null); // the token lapses by itself
    this.#forget();
  }

  get(path) {
    return this.#send("GET", path, {});
  }

  post(path, body) {
    return this.#send("POST", path, { body });
  }

  delete(path) {
    return this.#send("DELETE", path, {});
  }

  /** Names of the rooms that are served; needs no sign-in. */
  async roomsServed() {
    try {
      const answer = await fetch("/health", { cache: "no-store", signal: AbortSignal.timeout(READ_TIMEOUT_MS) });
      return Object.keys((await answer.json()).rooms ?? {});
    } catch {
      return [];
    }
  }

  /** A file of a treatment, as text or as a blob. */
  async file(path, kind = "text") {
    const answer = await this.#fetch("GET", path, {});
    return kind === "blob" ? answer.blob() : answer.text();
  }

  upload(path, file) {
    return this.#send(
      "POST", path,
      { raw: file, headers: { "X-File-Name": encodeURIComponent(file.name), "Content-Type": "application/octet-stream" } },
    );
  }

  /**
   * One command. `acted` is performance.now() when the person acted: the room judges the age and drops what is too old. A command
   * whose answer was lost is sent once more under the same key, so that it is never done twice.
   */
  async command(room, bootId, name, args, acted) {
    const key = crypto.randomUUID?.() ?? random(32);
    for (let attempt = 1; ; attempt += 1) {
      const body = {
        name, arguments: args ?? {}, control_token: this.control[room] ?? 0, boot_id: bootId,
        age_ms: Math.max(0, performance.now() - acted),
      };
      try {
        const answer = await this.#send("POST", `/api/rooms/${encodeURIComponent(room)}/commands`, {
          body, headers: { "Idempotency-Key": key }, timeout: COMMAND_TIMEOUT_MS,
        });
        if (!answer.accepted) throw new Refused(answer.reason || "refused", { status: 409, hint: answer.hint, code: answer.code });
        if (name === "take_control") this.#hold(room, answer.value);
        if (name === "enter_service") this.#hold(room, answer.value.token); // whoever enters commands the room
        if (name === "give_control") this.#hold(room, null);
        return answer;
      } catch (error) {
        if (!(error instanceof Refused) || error.status !== 0 || attempt > 1) throw error;
      }
    }
  }

  /**
   * Stop needs no sign-in; it is sent again until the room says that it heard it, for a minute. `late()` is called when that takes
   * long enough for a person to reach for the emergency stop. Resolves to whether it was heard.
   */
  async stop(room, late) {
    const begun = performance.now();
    for (let told = false; performance.now() - begun < STOP_GIVE_UP_MS; ) {
      try {
        const answer = await fetch(`/api/rooms/${encodeURIComponent(room)}/stop`, {
          method: "POST", headers: this.#signature(), signal: AbortSignal.timeout(STOP_LATE_MS), keepalive: true,
        });
        if (answer.ok) return true;
      } catch {
        // not heard: again
      }
      if (!told && performance.now() - begun > STOP_LATE_MS) {
        told = true;
        late();
      }
      await new Promise((resume) => setTimeout(resume, STOP_AGAIN_MS));
    }
    return false;
  }

  passwordChanged() {
    this.person = { ...this.person, first: false };
    this.#keep();
  }

  /** Whether this console holds the room's control, as far as it knows. */
  holds(room) {
    return Boolean(this.control[room]);
  }

  /** The room says that somebody else commands it. What it says just after the taking may be from before. */
  lost(room) {
    if (this.control[room] && performance.now() - this.#taken > TAKING_MS) this.#hold(room, null);
  }

  #hold(room, token) {
    if (token) [this.control[room], this.#taken] = [token, performance.now()];
    else delete this.control[room];
    this.#keep();
  }

  #signature() {
    return this.token ? { Authorization: `Bearer ${this.token}`, "X-Console": this.console } : {};
  }

  async #send(method, path, options) {
    const answer = await this.#fetch(method, path, options);
    if (answer.status === 204) return null;
    return answer.json().catch(() => null);
  }

  async #fetch(method, path, { body, raw, headers = {}, signed = true, timeout = READ_TIMEOUT_MS }) {
    const all = { ...headers };
    if (signed) Object.assign(all, this.#signature());
    if (body !== undefined) all["Content-Type"] = "application/json";
    let answer;
    try {
      answer = await fetch(
        path,
        {
          method, headers: all, body: raw ?? (body === undefined ? undefined : JSON.stringify(body)),
          signal: AbortSignal.timeout(timeout), cache: "no-store",
        },
      );
    } catch {
      throw new Refused("the console's server does not answer", { hint: "if it stays away, use the room's own buttons" });
    }
    if (answer.ok) return answer;
    const said = await answer.json().catch(() => null);
    if (answer.status === 401 && signed && this.token) this.#forget(farewellOf(wordsOf(said)));
    throw new Refused(
      wordsOf(said) || `refused (${answer.status})`,
      { status: answer.status, hint: said?.hint ?? said?.detail?.hint ?? "", code: said?.code ?? null },
    );
  }

  #renewEvery(seconds) {
    clearInterval(this.#renewal);
    const every = Math.max(5, Math.min((seconds ?? 900) / 3, 300));
    this.#renewal = setInterval(async () => {
      try {
        const answer = await this.#send("POST", "/api/renew", {});
        if (answer?.token && answer.token !== this.token) {
          this.token = answer.token;
          this.#keep(answer.expires_s);
        }
      } catch {
        // away or refused: a token that is refused signs out by itself
      }
    }, every * 1000);
  }

  #keep(expires_s) {
    const { token, console, person, control } = this;
    sessionStorage.setItem(KEPT, JSON.stringify({ token, console, person, control, expires_s }));
  }

  #forget(farewell = "") {
    this.farewell = farewell;
    clearInterval(this.#renewal);
    [this.token, this.person, this.control] = [null, null, {}];
    this.#keep();
    this.dispatchEvent(new Event("signed"));
  }
}

function wordsOf(said) {
  if (!said) return "";
  if (typeof said.reason === "string" && said.reason) return said.reason;
  if (typeof said.message === "string") return said.message;
  if (typeof said.detail === "string") return said.detail;
  if (Array.isArray(said.detail)) return said.detail.map((one) => one.msg ?? "").filter(Boolean).join("; ");
  return said.detail?.reason ?? said.detail?.message ?? "";
}

/** A console that was started again knows no sign-in of before. */
const farewellOf = (why) => (/not known/.test(why) ? "The console was started again: sign in anew." : `Signed out: ${why || "sign in anew"}.`);

function read(storage) {
  try {
    return JSON.parse(storage.getItem(KEPT)) ?? {};
  } catch {
    return {};
  }
}

function random(digits) {
  const bytes = crypto.getRandomValues(new Uint8Array(Math.ceil(digits / 2)));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("").slice(0, digits);
}
