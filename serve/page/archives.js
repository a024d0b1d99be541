// Archive runs: start one, and see how all of them stand.

import { dropBox } from "./classify.js";
import { duration, el, fill, lastPart, moment, note, number, plural, say } from "./dom.js";
import { OPEN, follow } from "./follow.js";
import { ask, newKey } from "./requests.js";
import { isArchive, startUpload, uploadList } from "./upload.js";

const PAGE = 20;
const REFRESH_MS = 5000;

const WORDS = {
  queued: "waits", planning: "finding images", running: "scoring", incomplete: "incomplete",
  cancelled: "cancelled", failed: "failed", complete: "complete",
};

export const ELSEWHERE = "Pictures from another lab";

/** Shows the list; returns a function that ends it. */
export function showArchives(main, { may }) {
  main.dataset.page = "archives";
  const told = el("div");
  const list = el("ul.runs", { "aria-label": "Archive runs" });
  const more = el("div.actions");
  const lines = new Map();
  let unfollow = () => {};
  let followed = null;
  let timer = null;
  let over = false;
  fill(main, el("h1", { tabindex: "-1" }, "Archives"),
    may("archives") ? starting(told, () => refresh()) : null,
    told, uploadList, list, more);
  uploadList.addEventListener("uploaded", refresh);
  refresh();
  return () => {
    over = true;
    unfollow();
    clearTimeout(timer);
    uploadList.removeEventListener("uploaded", refresh);
  };

  async function refresh() {
    clearTimeout(timer);
    try {
      const { archives } = await ask(`/v1/archives?limit=${PAGE}`);
      if (over) return;
      show(archives, true);
      followNewest(archives.find((view) => OPEN.includes(view.status)));
      if (archives.some((view) => OPEN.includes(view.status))) timer = setTimeout(refresh, REFRESH_MS);
    } catch (error) {
      if (!over) fill(told, note("bad", error.message));
    }
  }

  // One run is followed as it goes on; the others are asked for every few seconds.
  function followNewest(view) {
    if (!view || view.id === followed) return;
    unfollow();
    followed = view.id;
    unfollow = follow(view.id, (now) => {
      line(now);
      announce(now);
      if (!OPEN.includes(now.status)) refresh();
    });
  }

  function line(view) {
    if (!lines.has(view.id)) lines.set(view.id, el("li"));
    return fill(lines.get(view.id), ...summary(view));
  }

  function show(archives, fresh) {
    const shown = archives.map(line);
    if (fresh) fill(list, ...shown, ...[...list.children].filter((old) => !shown.includes(old)));
    else list.append(...shown);
    if (!list.children.length) fill(list, el("li.empty", {}, "There are no runs yet."));
    const last = archives.at(-1);
    if (archives.length < PAGE) fill(more);
    else if (!fresh || !more.children.length) {
      fill(more, el("button", { type: "button", click: () => older(last.id) }, "Older runs"));
    }
  }

  async function older(before) {
    const { archives } = await ask(`/v1/archives?limit=${PAGE}&before=${before}`);
    if (!over) show(archives, false);
  }
}

function starting(told, started) {
  const store = el("input", { id: "store", required: true, maxlength: 1024, autocomplete: "off",
    spellcheck: "false", placeholder: "s3://lab/slides/2026-11" });
  const out = el("input", { id: "out", maxlength: 1024, autocomplete: "off", spellcheck: "false",
    placeholder: "kept by the endpoint" });
  const button = el("button.main", { type: "submit" }, "Score it");
  let key = newKey();
  const form = el("form.store", { submit: async (event) => {
    event.preventDefault();
    button.disabled = true;
    fill(told);
    try {
      const json = { store: store.value.trim(), out: out.value.trim() || null };
      const view = await ask("/v1/archives", { json, headers: { "Idempotency-Key": key } });
      key = newKey();
      form.reset();
      say(`The run of ${json.store} has begun.`);
      location.hash = `#/archives/${view.id}`;
      started();
    } catch (error) {
      key = newKey();
      fill(told, note("bad", error.message));
    } finally {
      button.disabled = false;
    }
  } },
  el("label", { for: "store" }, "Folder, archive or table"), store,
  el("label", { for: "out" }, "Write the run to"), out, button);
  return el("div.starting", {},
    dropBox({
      label: "Drop slide archives here, or choose them",
      hint: ".zip, .tar or .tar.gz; one slide an archive.",
      accept: ".zip,.tar,.gz,.tgz",
      taken: (files) => {
        const others = files.filter((file) => !isArchive(file));
        fill(told, others.length ? note("warn", `${plural(others.length, "file")} left out that ` +
          "are no .zip, .tar or .tar.gz; single images go to Cells.") : null);
        files.filter(isArchive).forEach(startUpload);
      },
    }),
    el("details", {}, el("summary", {}, "Or name a store that the endpoint may read"), form));
}

/** How a run is called: by the ends of its stores. */
export const runName = (view) => view.store.map(lastPart).join(", ") || view.id;

/** A run's status as a badge. */
export const status = (view) => el(`span.status.s-${view.status}`, {}, WORDS[view.status] || view.status);

/** How far a run is, from 0 to 1; null while that is not known. */
export function done({ counts, status: now }) {
  if (now === "queued" || now === "planning" || !counts.listed) return null;
  return Math.min(1, (counts.scored + counts.quarantined) / counts.listed);
}

/** A run's bar, speed and time left, as elements. */
export function progress(view) {
  const share = done(view);
  const parts = [];
  if (OPEN.includes(view.status)) {
    parts.push(el("progress", { "aria-label": `Progress of ${runName(view)}`, max: 1, value: share }));
  }
  const words = [`${number(view.counts.scored)} of ${plural(view.counts.listed, "image")} scored`];
  if (view.counts.quarantined) words.push(`${number(view.counts.quarantined)} cannot be scored`);
  if (view.images_per_second) words.push(`${number(Math.round(view.images_per_second))} images/s`);
  if (view.seconds_left !== null && OPEN.includes(view.status)) {
    words.push(`${duration(view.seconds_left)} left`);
  }
  parts.push(el("p.small", {}, words.join(" · ")));
  return parts;
}

/** Tells listeners how far a run is, now and then, and at once when it ends. */
export function announce(view) {
  const share = done(view);
  const words = `${runName(view)}: ${WORDS[view.status] || view.status}`;
  if (!OPEN.includes(view.status)) say(`${words}.`);
  else if (share !== null) say(`${words}, ${Math.floor(100 * share)} %.`, { rarely: true });
}

function summary(view) {
  return [
    el("p.head", {}, el("a.name", { href: `#/archives/${view.id}` }, runName(view)), " ", status(view)),
    view.site?.standing === "elsewhere" ? el("p.flag.bad", { title: view.site.sentence }, `⚠ ${ELSEWHERE}`) : null,
    ...progress(view),
    view.message ? el("p.small", {}, view.message) : null,
    el("p.small", {}, `${moment(view.created)} by ${view.created_by}`),
  ];
}
