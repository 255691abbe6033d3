/** One's own password: the first one, which somebody else has seen, is to be changed. */

import { beside, during, h, mark, put } from "./dom.js";
import { label } from "./interlocks.js";

export function accountDialog(desk) {
  const who = h("input", { name: "username", type: "text", autocomplete: "username", readonly: true, hidden: true, tabindex: "-1" }); // for keepers of passwords
  const old = h("input", { type: "password", required: true, autocomplete: "current-password" });
  const fresh = h("input", { type: "password", required: true, minlength: "12", maxlength: "256", autocomplete: "new-password" });
  const again = h("input", { type: "password", required: true, autocomplete: "new-password" });
  const why = h("p", { class: "soft" });
  const submit = h("button", { type: "submit", class: "act main" }, "Change password");
  const close = h("button", { type: "button", class: "act" }, "Not now");
  const form = h("form", { class: "form narrow-form" }, who, label("Password now", old), label("New password, 12 characters or more", fresh), label("The same again", again),
    h("div", { class: "row" }, submit, close));
  const dialog = h("dialog", { class: "help small-dialog", "aria-label": "Your password" }, h("h2", {}, "Your password"), why, form);
  close.addEventListener("click", () => dialog.close());
  again.addEventListener("input", () => again.setCustomValidity(again.value === fresh.value ? "" : "not the same"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (again.value !== fresh.value) return;
    if (await during(submit, () => desk.change("POST", "/api/me/password", { old: old.value, new: fresh.value }))) {
      desk.passwordChanged();
      desk.say("Your password is changed");
      dialog.close();
    }
    form.reset();
  });
  return {
    element: beside(dialog),
    open() {
      const person = desk.person();
      if (!person || dialog.open) return;
      who.value = person.name;
      put(
        why,
        person.first ? "This is still the first password, which stands in a file. Choose one of your own." : `Signed in as ${person.name}.`,
      );
      mark(form, "data-first", person.first);
      dialog.show();
    },
  };
}
