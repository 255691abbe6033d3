/** Signing in: name, password, as what, and the name of this console. */

import { enable, h, mark, put, show } from "./dom.js";
import { label } from "./interlocks.js";
import { roleOf } from "./words.js";

export function signInPage(connection) {
  const name = h("input", { name: "name", required: true, autocomplete: "username", spellcheck: "false", autocapitalize: "none" });
  const password = h("input", { name: "password", type: "password", required: true, autocomplete: "current-password" });
  const role = h(
    "select", { name: "role" }, h("option", { value: "" }, "my usual role"),
    ...["observer", "operator", "physicist", "service", "security_admin"].map((one) => h("option", { value: one }, roleOf(one))),
  );
  const desk = h(
    "input",
    {
      name: "console", required: true, maxlength: "40", pattern: "[A-Za-z0-9][A-Za-z0-9_.\\-]*",
      value: connection.console, spellcheck: "false",
    },
  );
  const button = h("button", { type: "submit", class: "act main" }, "Sign in");
  const farewell = h("p", { class: "farewell", role: "status" });
  const wrong = h("p", { class: "wrong", role: "alert" });
  const form = h(
    "form", { class: "form sign-in panel" },
    h("h1", {}, "Sign in"), farewell, label("Name", name), label("Password", password), label("As", role), label("This console", desk),
    wrong, button, h("p", { class: "soft" }, "Without signing in nothing is shown and nothing can be done, except STOP."),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    enable(button, false);
    put(wrong, "");
    try {
      await connection.signIn({ name: name.value.trim(), password: password.value, console: desk.value.trim(), role: role.value });
    } catch (error) {
      put(wrong, `${error.message}${error.hint ? `; ${error.hint}` : ""}`);
      mark(password, "aria-invalid", "true");
      password.select();
    } finally {
      password.value = "";
      enable(button, true);
    }
  });
  const element = h("div", { class: "page entrance" }, form);
  let offered = false;
  return {
    element,
    open(visible) {
      show(element, visible);
      if (visible) put(farewell, connection.farewell);
      if (visible && !offered) { // once: whoever has begun to type goes on in the same place
        desk.value = connection.console;
        if (!form.contains(document.activeElement)) name.focus();
      }
      offered = visible;
    },
  };
}
