/** Who may sign in, and as what. For the security administrator. */

import { during, h, keyed, panel, put, show } from "./dom.js";
import { asked } from "./actions.js";
import { label } from "./interlocks.js";
import { roleOf } from "./words.js";

const ROLES = ["observer", "operator", "physicist", "service", "security_admin"];

export function peoplePage(desk) {
  const list = h("ul", { class: "choices people" });
  const name = h("input", { required: true, maxlength: "64", autocomplete: "username", spellcheck: "false" });
  const boxes = ROLES.map((role) => h("input", { type: "checkbox", value: role }));
  const password = h("input", { type: "password", minlength: "12", maxlength: "256", autocomplete: "new-password" });
  const form = h(
    "form", { class: "form" }, label("Name", name), h(
      "fieldset", {}, h("legend", {}, "May sign in as"),
      ...boxes.map((box) => h("label", { class: "check" }, box, h("span", {}, roleOf(box.value)))),
    ),
    label("First password; empty: one is made", password), h("button", { type: "submit", class: "act main" }, "Add person"),
  );
  const add = form.lastChild;
  const made = h("p", { role: "status" });
  const none = h("p", { class: "soft" }, "For the security administrator.");
  const element = h(
    "div", { class: "page two" }, panel("People", { class: "scrolling" }, h("div", { class: "scroll" }, none, list)),
    panel("Add a person", {}, form, made),
  );

  async function load() {
    const answer = desk.person()?.role === "security_admin" ? await desk.ask("/api/users") : null;
    show(none, answer === null);
    if (answer !== null) keyed(
      list, answer.users ?? answer, (one) => one.name, (one) => makePerson(() => remove(one.name)),
      (row, one) => row.update(one),
    );
  }
  async function remove(who) {
    if (await desk.change("DELETE", `/api/users/${encodeURIComponent(who)}`)) desk.say(`${who} may not sign in any more`);
    load();
  }
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const roles = boxes.filter((box) => box.checked).map((box) => box.value);
    if (!roles.length) return desk.say("Choose at least one role", "bad");
    const body = { name: name.value.trim(), roles, ...(password.value ? { password: password.value } : {}) };
    const answer = await during(add, () => desk.change("POST", "/api/users", body));
    if (answer) {
      put(made, answer.password ? `First password of ${answer.name}: ${answer.password}  It is shown only now.` : "");
      desk.say(`${body.name} may sign in`);
      form.reset();
    }
    load();
  });
  return { element, enter: load, every: 0, update() {} };
}

function makePerson(remove) {
  const name = h("b", {}), about = h("span", { class: "soft" });
  const row = h(
    "li", { class: "choice" }, name, about,
    asked(h("button", { type: "button", class: "act" }, "Remove"), "Remove this person?", remove),
  );
  row.update = (one) => {
    put(name, one.name);
    put(
      about,
      [
        (one.roles ?? [one.role]).map(roleOf).join(", "), one.first_password ? "first password not yet changed" : "",
      ].filter(Boolean).join("; "),
    );
  };
  return row;
}
