// The page as a whole: who is signed in, which view the address names, and what they may see.

import { showArchives } from "./archives.js";
import { createCells } from "./classify.js";
import { el, fill, note } from "./dom.js";
import { ask } from "./requests.js";
import { showReview } from "./review.js";
import { showRun } from "./run.js";
import { showSignIn, signOut, whoAmI } from "./session.js";
import { forgetUploads } from "./upload.js";

const main = document.getElementById("main");
const nav = document.getElementById("nav");
const badge = document.getElementById("person");

let person = null;
let cells = null; // kept while people look elsewhere: its results exist nowhere else
let leave = () => {};
let shown = ""; // what the view depends on

start();

async function start() {
  window.addEventListener("hashchange", route);
  document.addEventListener("signed-out", () => {
    if (person) leaveAll("Your session has ended; sign in again.");
  });
  // A file dropped beside the box would else replace the page.
  for (const kind of ["dragover", "drop"]) {
    window.addEventListener(kind, (event) => event.preventDefault());
  }
  try {
    const known = await whoAmI();
    if (known) enter(known);
    else showSignIn(main, enter);
  } catch (error) {
    showSignIn(main, enter, error.message);
  }
}

function may(...roles) {
  return person !== null && roles.some((role) => person.roles.includes(role));
}

function enter(known) {
  person = known;
  const out = el("button.plain", { type: "button", click: leaving }, "Sign out");
  fill(badge, el("span", {}, person.name), out);
  badge.hidden = false;
  nav.hidden = false;
  fill(nav,
    may("classify") ? el("a", { href: "#/cells" }, "Cells") : null,
    may("archives", "review") ? el("a", { href: "#/archives" }, "Archives") : null);
  shown = "";
  route();
  showModel();
}

async function leaving() {
  try {
    await signOut();
  } finally {
    leaveAll("");
  }
}

function leaveAll(reason) {
  leave();
  leave = () => {};
  if (cells) cells.forget();
  forgetUploads();
  person = cells = null;
  nav.hidden = badge.hidden = true;
  fill(document.getElementById("model"));
  showSignIn(main, enter, reason);
}

function route() {
  if (!person) return;
  const [path, query = ""] = location.hash.slice(2).split("?");
  const [place, id, sub] = path.split("/");
  const wanted = `${path}?${query}`;
  if (wanted === shown) return;
  shown = wanted;
  leave();
  leave = () => {};
  const archives = may("archives", "review");
  if (place === "archives" && archives && sub === "review") {
    leave = showReview(main, id, { may, slide: new URLSearchParams(query).get("slide") });
  } else if (place === "archives" && archives && id) {
    leave = showRun(main, id, { may });
  } else if (may("classify") && (place !== "archives" || !archives)) {
    cells = cells || createCells({ may });
    leave = cells.show(main) || leave;
  } else if (archives) {
    leave = showArchives(main, { may });
  } else {
    fill(main, el("h1", { tabindex: "-1" }, "Nothing to show"),
      note("warn", "Your token has no role; ask the operator for one."));
  }
  for (const link of nav.children) {
    const here = link.hash === (main.dataset.page === "cells" ? "#/cells" : "#/archives");
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const title = main.querySelector("h1");
  document.title = `${title ? title.textContent : "Blood cells"} · Blood cells`;
  if (title && document.activeElement === document.body) title.focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

async function showModel() {
  try {
    const model = await ask("/v1/model");
    fill(document.getElementById("model"),
      `Model: ${model.model_name}, `, el("code", {}, String(model.bundle_digest).slice(0, 19)), "…");
  } catch {
    fill(document.getElementById("model"));
  }
}
