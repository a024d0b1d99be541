// One archive run: how it stands, its slides with their differentials, its files.

import { ELSEWHERE, announce, progress, runName, status } from "./archives.js";
import { differential } from "./differential.js";
import { bytes, el, fill, moment, note, number, own, plural } from "./dom.js";
import { OPEN, follow } from "./follow.js";
import { ask } from "./requests.js";

const SLIDES_EVERY_MS = 5000;
const REPORT = "report.html";

/** Shows a run; returns a function that ends it. */
export function showRun(main, id, { may }) {
  main.dataset.page = "archives";
  const path = `/v1/archives/${encodeURIComponent(id)}`;
  const title = el("h1", { tabindex: "-1" }, "Run");
  const whence = el("div"); // apart from the head, which is made anew every second: an alarm is told once
  const head = el("div");
  const told = el("div");
  const slides = el("section.slides-part", { hidden: true });
  const files = el("section", { hidden: true });
  let chosen = null;
  let slidesAt = 0;
  let last = null;
  let sentence = null;
  let over = false;
  let unfollow = () => {};
  fill(main, el("p.small", {}, el("a", { href: "#/archives" }, "All archives")), title, whence, head, told, slides, files);
  begin();
  return () => {
    over = true;
    unfollow();
  };

  async function begin() {
    try {
      changed(await ask(path));
    } catch (error) {
      if (!over) fill(told, note("bad", error.message));
    }
  }

  function changed(view) {
    if (over) return;
    const before = last;
    last = view;
    title.textContent = runName(view);
    document.title = `${runName(view)} · Blood cells`;
    showWhence(view.site);
    showHead(view);
    const open = OPEN.includes(view.status);
    if (before === null && open) unfollow = follow(id, changed);
    if (before !== null) announce(view);
    const ended = before === null || before.status !== view.status;
    if (ended || Date.now() - slidesAt > SLIDES_EVERY_MS) {
      slidesAt = Date.now();
      if (view.counts.shards_done || view.counts.scored) showSlides();
      showFiles();
    }
  }

  function showWhence(site) {
    if (!site || site.sentence === sentence) return; // not known yet, not asked, or told already
    sentence = site.sentence;
    fill(whence, origin(site));
  }

  function showHead(view) {
    const open = OPEN.includes(view.status);
    const again = ["incomplete", "cancelled", "failed"].includes(view.status);
    const button = may("archives") && (open || again)
      ? el("button", { type: "button", click: () => order(open ? "cancel" : "resume") }, open ? "Cancel" : "Resume")
      : null;
    const refocus = button && head.contains(document.activeElement) && document.activeElement.tagName === "BUTTON";
    const problems = view.problems.map((problem) =>
      el("li", {}, el("span.uri", {}, problem.uri), " ", problem.detail));
    fill(head,
      el("p.head", {}, status(view), ` ${moment(view.created)} by ${view.created_by}`),
      ...progress(view),
      view.message ? note(view.status === "failed" ? "bad" : "warn", view.message) : null,
      el("dl.facts", {},
        el("dt", {}, "From"), el("dd.uri", {}, view.store.join(", ")),
        view.out ? el("dt", {}, "Written to") : null, view.out ? el("dd.uri", {}, view.out) : null,
        el("dt", {}, "Shards"), el("dd", {}, `${number(view.counts.shards_done)} of ${number(view.counts.shards)}`),
        el("dt", {}, "Model"), el("dd.uri", {}, view.bundle_digest || "not known yet")),
      problems.length ? el("details", { open: true }, el("summary", {}, plural(problems.length, "problem")),
        el("ul", {}, ...problems)) : null,
      el("div.actions", {},
        view.counts.scored ? el("a.button.main", { href: `#/archives/${id}/review` }, may("review") ? "Review cells" : "Look at cells") : null,
        button));
    if (refocus) button.focus();
  }

  async function order(what) {
    try {
      const view = await ask(`${path}/${what}`, { method: "POST" });
      fill(told);
      last = null; // followed anew
      unfollow();
      changed(view);
    } catch (error) {
      fill(told, note("bad", error.message));
    }
  }

  async function showSlides() {
    let found;
    try {
      found = await ask(`${path}/slides`, { patient: false });
    } catch (error) {
      if (error.status === 409 || over) return; // none yet
      slides.hidden = false;
      fill(slides, el("h2", {}, "Slides"), note("warn", error.message));
      return;
    }
    if (over || !found.slides.length) return;
    slides.hidden = false;
    const total = found.total ?? found.slides.length;
    if (!found.slides.some((slide) => slide.slide_id === chosen)) chosen = found.slides[0].slide_id;
    const chart = el("div", { "aria-live": "off" });
    const focused = document.activeElement?.dataset?.slide;
    const rows = found.slides.map((slide) => row(slide, chart, (picked) => {
      chosen = picked.slide_id;
      for (const button of slides.querySelectorAll("button[data-slide]")) {
        button.setAttribute("aria-pressed", String(button.dataset.slide === chosen));
      }
      fill(chart, ...differential(picked, id));
    }));
    const heads = ["Slide", "Images", "Scored", "Not scored", "Out of domain", "To review", "Reviewed"];
    const running = last && OPEN.includes(last.status);
    fill(slides, el("h2", {}, "Slides"),
      running ? el("p.small", {}, "So far: the run goes on, and these figures with it.") : null,
      el("div.scroll", { tabindex: "0", role: "region", "aria-label": "Table of slides" }, el("table.numbers", {},
        el("thead", {}, el("tr", {}, ...heads.map((words) => el("th", { scope: "col" }, words)))),
        el("tbody", {}, ...rows))),
      total > found.slides.length ? el("p.small", {}, `The first ${number(found.slides.length)} of ` +
        `${number(total)}; all of them are in slides.parquet.`) : null,
      chart);
    fill(chart, ...differential(found.slides.find((slide) => slide.slide_id === chosen), id));
    for (const button of slides.querySelectorAll("button[data-slide]")) {
      if (button.dataset.slide === focused) button.focus({ preventScroll: true });
    }
  }

  function row(slide, chart, pick) {
    const { machine } = slide;
    const cells = [machine.num_images, machine.num_scored, machine.num_quarantined,
      machine.num_out_of_domain, machine.num_review, slide.num_reviewed];
    return el("tr", {},
      el("th", { scope: "row" }, el("button.slide", { type: "button", "data-slide": slide.slide_id,
        "aria-pressed": String(slide.slide_id === chosen), click: () => pick(slide) }, slide.slide_id)),
      ...cells.map((count) => el("td", {}, number(count))));
  }

  async function showFiles() {
    let found;
    try {
      found = await ask(`${path}/files`, { patient: false });
    } catch {
      return; // nothing written yet
    }
    if (over || !found.files.length) return;
    files.hidden = false;
    const whole = found.files.filter((file) => !file.name.includes("/"));
    const parts = found.files.filter((file) => file.name.includes("/"));
    const wasOpen = Boolean(files.querySelector("details[open]"));
    fill(files, el("h2", {}, "Files"),
      el("ul.files", {}, ...whole.sort((one) => (one.name === REPORT ? -1 : 1)).map(fileLine)),
      parts.length ? el("details", { open: wasOpen }, el("summary", {}, `${plural(parts.length, "part")}: scores, quarantine, reviews`),
        el("ul.files", {}, ...parts.map(fileLine))) : null);
  }
}

/** Where a run's pictures come from: an alarm where from another lab, else a quiet line. */
function origin({ standing, sentence }) {
  if (standing !== "elsewhere") return el(`p.small${standing === "home" ? "" : ".warn"}`, {}, sentence);
  return el("div.note.bad.alarm", { role: "alert" }, el("strong", {}, `⚠ ${ELSEWHERE}`), el("p", {}, sentence));
}

function fileLine(file) {
  const address = own(file.url);
  const report = file.name === REPORT;
  const given = { href: address, target: report ? "_blank" : null, rel: report ? "noopener" : null };
  return el("li", {}, el("a", given, report ? "Report" : file.name), " ", el("span.small", {}, bytes(file.bytes)));
}
