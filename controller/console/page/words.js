/** The operator's words: states, roles, commands, qualities. The field's names (IEC 60601-2-64), nothing of the program. */

/** state -> [word, what it means, shape, tone]. Yellow is radiation, green ready, red urgent, as on a treatment control panel. */
const STATES = {
  standby: ["Standby", "nothing is selected", "ring", "quiet"],
  "preparatory.identified": ["Preparing", "patient and plan confirmed", "quarter", "prepare"],
  "preparatory.positioning": ["Preparing", "gantry and couch go to their targets", "quarter", "prepare"],
  "preparatory.imaging": ["Preparing", "position is verified by image", "half", "prepare"],
  "preparatory.positioned": ["Preparing", "position accepted; search the room and close the door", "half", "prepare"],
  "preparatory.secured": ["Preparing", "room searched and closed", "most", "prepare"],
  "preparatory.allocated": ["Preparing", "this room holds the beam", "most", "prepare"],
  "preparatory.tuning": ["Preparing", "accelerator and magnets are tuned", "most", "prepare"],
  "ready.armed": ["Ready", "one deliberate beam-on away", "diamond", "ready"],
  "irradiating.beam_on": ["Beam on", "irradiating", "rays", "beam"],
  "irradiating.held": ["Beam held", "goes on by itself", "rays", "beam"],
  interrupted: ["Interrupted", "beam is off; resume or end the field", "bars", "warn"],
  "terminated.complete": ["Complete", "everything was delivered", "tick", "ready"],
  "terminated.partial": ["Ended early", "what is missing stays on record", "part", "warn"],
  fault: ["Fault", "causes have to go; then it is acknowledged", "cross", "bad"],
  "service.qa": ["Service", "quality assurance", "wrench", "service"],
  "service.beam_tuning": ["Service", "beam tuning", "wrench", "service"],
  "service.physics": ["Service", "physics", "wrench", "service"],
};

export const stateOf = (name) => {
  const [word, meaning, shape, tone] = STATES[name] ?? [name ?? "Unknown", "", "cross", "bad"];
  return { word, meaning, shape, tone };
};

/** Why the room is in its state. Of a pause the room names only who asked for it. */
export const whyOf = ({ state, why }) => (state === "interrupted" && /^[\w.-]+ at [\w.-]+$/.test(why) ? `paused by ${why}` : why);

const ROLES = {
  observer: "observer", operator: "operator", physicist: "physicist", service: "service", security_admin: "security",
  key: "key switch",
};
export const roleOf = (name) => ROLES[name] ?? name ?? "";

/** What becomes of a deadline, by state. */
export const LAPSES = {
  "ready.armed": "ready lapses in",
  "irradiating.held": "interrupted in",
  interrupted: "field ends in",
};

/**
 * Commands with a button that is not a place of its own. `ask`: what is asked before it is sent; `only`: for one role; `when`: what
 * has to stand for it to make sense, where the room's list of commands goes by its state alone.
 */
export const ACTS = [
  { name: "cancel", label: "Cancel preparation", ask: "Give this preparation up?" },
  { name: "unload_plan", label: "Unload plan", ask: "Take the plan off this room?", when: (view) => view.treatment?.status === "loaded" },
  { name: "acknowledge", label: "Acknowledge fault", ask: "Every cause is gone and understood?" },
  {
    name: "reconcile", label: "Reconcile dose", ask: "Settle what the treatment that ended has given?", // any other: under Treatments
    when: (view) => view.treatment && !["loaded", "running", "writing"].includes(view.treatment.status),
  },
  { name: "reset_dose_trip", label: "Reset dose trip", ask: "Reset the dose unit that tripped?" },
  { name: "self_test", label: "Dose self-test" },
  { name: "enter_service", label: "Service: QA", args: { mode: "qa" }, ask: "Leave treatment for quality assurance?", only: "physicist" },
  {
    name: "enter_service", label: "Service: beam tuning", args: { mode: "beam_tuning" },
    ask: "Leave treatment for beam tuning?", only: "service",
  },
  { name: "leave_service", label: "Leave service" },
];

export const BANNERS = {
  SIMULATED: ["screen", "no beam, no patient"],
  SERVICE: ["wrench", "no treatment while the room is in service"],
  BYPASS: ["bypass", "an interlock is bypassed"],
  RESEARCH: ["flask", "research: overrides are recorded"],
  "LIMITS UNSIGNED": ["alarm-medium", "limits of this room are not signed"],
  STALE: ["cross", "values on this screen are old"],
};

const AXES = {
  lateral_mm: "Lateral", longitudinal_mm: "Longitudinal", vertical_mm: "Vertical", angle_deg: "Rotation",
  pitch_deg: "Pitch", roll_deg: "Roll",
};
export const axisOf = (name) => AXES[name] ?? AXES[`${name}_mm`] ?? AXES[`${name}_deg`] ?? spaced(name);

const UNITS = { deg: "°", "deg/s": "°/s", mev_u: "MeV/u", um: "µm" };
export const unitOf = (unit) => UNITS[unit] ?? unit ?? "";

const STATUS = {
  waiting: "to come", current: "now", complete: "complete", partial: "partial", refused: "refused", fault: "fault",
  loaded: "loaded", running: "running", writing: "writing the record", open: "being treated", unbegun: "never begun",
  cut_off: "cut off in beam, to be reconciled", locked: "waits for a physicist's signature",
};
const LOST_MS = 1000; // a commanding console that is silent for longer commands no more
export const lost = (control) => control.heard_ms > LOST_MS;

/** Who commands a room, from where; of a console that is not heard: since when, and that somebody else may. */
export const commanderOf = (control) => {
  const who = `${control.actor} at ${control.console}`;
  return lost(control) ? `${who} not heard for ${Math.floor(control.heard_ms / 1000)} s; control may be taken` : `${who} commands`;
};

export const statusOf = (status) => STATUS[status] ?? status ?? "";

const FACTS = {
  plan_uid: null, version: null, beam_number: null, room: "Room", beam_name: "Beam",
  plan_label: "Plan", patient_id: "Patient ID", patient_name: "Patient", fraction: "Fraction",
  meterset: "Meterset", meterset_unit: null, gantry_deg: "Gantry", correction: "Correction up to", residual: "Remaining deviation", images: "Images", remainder: "Left of", dose_gy: "Dose",
  residual_limit: null, correction_limit: null, gantry_limit_deg: null, // said behind what they limit
};

/** What has to be compared stands first: the place is small. What is not listed follows in the room's order. */
const FIRST = ["residual", "correction", "patient_name", "patient_id", "plan_label", "fraction", "remainder", "room", "beam_name", "meterset", "gantry_deg"];
const rank = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);

/** What is asked, in the console's own words; the numbers stand beside it. */
const QUESTIONS = {
  identify: "Right patient, plan, fraction and room?",
  positioned: "Is the position accepted?",
  beam_on: "Beam on?",
  resume: "Beam on again?",
};
export const questionOf = ({ kind, text }) => QUESTIONS[kind] ?? text;

/** The facts of a question as [name, value] pairs in words; nested values are spread, identifiers of the program are left out. */
export function factsOf(facts) {
  const pairs = [];
  for (const [name, value] of Object.entries(facts ?? {}).sort(([a], [b]) => rank(a) - rank(b))) {
    if (FACTS[name] === null || value === "" || value === null || value === undefined) continue;
    const label = FACTS[name] ?? spaced(name);
    if (typeof value === "object" && !Array.isArray(value)) {
      pairs.push([label, largest(value) + limited(facts[`${name}_limit`])]);
    } else if (name === "remainder") pairs.push([label, String(value).replace(/^what is left of /, "")]);
    else if (name === "patient_name") pairs.push([label, person(value)]);
    else if (name === "meterset") pairs.push([label, `${figure(value, 2)} ${facts.meterset_unit ?? ""}`.trim()]);
    else pairs.push([
      label,
      (typeof value === "number" && !Number.isInteger(value) ? amount_(name, value) : `${value}${name.endsWith("_deg") ? "°" : ""}`)
        + (name === "gantry_deg" ? limited(facts.gantry_limit_deg) : ""),
    ]);
  }
  return pairs;
}

/** Of several axes the largest length and the largest angle; each of them is in the log. */
function largest(axes) {
  const of = (ending) => Object.entries(axes).filter(([name]) => name.endsWith(ending)).reduce(
    (most, [, value]) => Math.max(most, Math.abs(value)), -1,
  );
  const [mm, deg] = [of("_mm"), of("_deg")];
  return [mm >= 0 && `${figure(mm, 2)} mm`, deg >= 0 && `${figure(deg, 2)}°`].filter(Boolean).join(", ") || "none";
}

/** What is allowed of a number that is to be accepted, of several axes or of an angle. */
function limited(limit) {
  if (limit === undefined || limit === null) return "";
  return ` (limit ${typeof limit === "object" ? largest(limit) : `${figure(limit, 2)}°`})`;
}

function amount_(name, value) {
  const unit = name.endsWith("_mm") ? " mm" : name.endsWith("_deg") ? "°" : "";
  return `${figure(value, 2)}${unit}`;
}

/** `a_name_mm` in words. */
export const spaced = (name) => {
  const words = String(name ?? "").replace(/_(mm|deg|s|ns|gy|mev_u)$/, "").replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
};

/** With a capital letter, and without numbers of the program in front. */
export function sentence(words) {
  const plain = String(words ?? "").replace(/^([a-z_]+\.\w+:|\[\d+\])\s*/, "");
  return plain.charAt(0).toUpperCase() + plain.slice(1);
}

const SETTINGS = {
  snout: (value) => `${figure(Number(value), 0)} mm`, range_shifters: (value) => value || "none",
  ripple_filter: (value) => (value === "0" || value === "" ? "none" : value),
};
export const settingOf = (name, value) => SETTINGS[name]?.(value) ?? (value === "" ? "–" : value);

/** A number as it is shown; a dash where nothing sound is known. */
export function figure(value, digits = 1) {
  if (value === null || value === undefined || typeof value !== "number" || !Number.isFinite(value)) return "–";
  const words = value.toFixed(digits);
  return Number(words) === 0 ? words.replace("-", "") : words.replace("-", "−");
}

/** So many of something: no alarms, 1 alarm, 2 alarms. */
export const amount = (number, thing) => `${number || "no"} ${thing}${number === 1 ? "" : "s"}`;

/** A count with thin spaces between thousands. */
export const count = (value) => (Number.isFinite(value) ? String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, "\u202f") : "–");

/** What is not complete is never called 100 %, and what is not known is a dash. */
export const percent = (part, whole, complete = false) => (whole > 0 && Number.isFinite(part) ? `${Math.min(
  complete ? 100 : 99, Math.round((100 * part) / whole),
)} %` : "–");

/** Seconds as a clock: 0:42, 12:05. */
export function clock(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const whole = Math.max(0, Math.ceil(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/** A moment of UTC as date and time of day, to the second. */
export const moment = (utc) => (utc ? String(utc).replace("T", " ").replace(/(\.\d+)?(Z|\+00:00)?$/, "") : "–");

/** The time of day, UTC, at which something happened that a view knows by the room's own clock; empty where that is not known. */
export function timeOfDay(t_ns, view) {
  const now = Date.parse(view.utc);
  if (!(t_ns > 0) || t_ns > view.t_ns || !Number.isFinite(now)) return "";
  return new Date(now - (view.t_ns - t_ns) / 1e6 / view.speed).toISOString().slice(11, 19);
}

/** A patient's name of a DICOM file: `Family^Given` as `Family, Given`. */
export const person = (name) => String(name ?? "").split("^").filter(Boolean).join(", ") || "–";
