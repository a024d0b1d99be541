// Signing in and out. The token is sent once and kept nowhere; the cookie is not readable here.

import { el, fill, note, say } from "./dom.js";
import { ask } from "./requests.js";

const MARK = "bloodcells-signed-in"; // says that asking who I am is worth it; holds no secret

/** Who is signed in, or null. */
export async function whoAmI() {
  if (!marked()) return null;
  try {
    return await ask("/v1/session");
  } catch (error) {
    if (error.status !== 401) throw error;
    mark(false);
    return null;
  }
}

export async function signOut() {
  mark(false);
  await ask("/v1/session", { method: "DELETE" });
}

/** Shows the form. `entered(person)` is called with who signed in. */
export function showSignIn(main, entered, reason = "") {
  const token = el("input", {
    id: "token", type: "password", autocomplete: "current-password", required: true,
    maxlength: 512, spellcheck: "false",
  });
  const button = el("button.main", { type: "submit" }, "Sign in");
  const told = el("div");
  const form = el("form.sign-in", { submit },
    el("label", { for: "token" }, "Token"), token, button, told,
    el("p.small", {}, "The operator of this endpoint gave it to you; ",
      el("code", {}, "make serve"), " prints one when it starts. You stay signed in for 12 hours."));
  fill(main,
    el("h1", { tabindex: "-1" }, "Blood cells, classified"),
    el("p.lead", {}, "Eight types of peripheral blood cells in Romanowsky-stained single-cell images: " +
      "one at a time, or whole slide archives with differentials and their intervals."),
    reason ? note("warn", reason) : null,
    form);
  token.focus();

  async function submit(event) {
    event.preventDefault();
    button.disabled = true;
    fill(told);
    try {
      await ask("/v1/session", { json: { token: token.value.trim() }, patient: false });
      mark(true);
      const person = await ask("/v1/session");
      token.value = "";
      say(`Signed in as ${person.name}.`);
      entered(person);
    } catch (error) {
      fill(told, note("bad", error.message));
      button.disabled = false;
      token.select();
    }
  }
}

function marked() {
  try {
    return localStorage.getItem(MARK) === "1";
  } catch {
    return true; // no storage: ask
  }
}

function mark(signedIn) {
  try {
    if (signedIn) localStorage.setItem(MARK, "1");
    else localStorage.removeItem(MARK);
  } catch {
    // no storage: whoAmI asks each time
  }
}
