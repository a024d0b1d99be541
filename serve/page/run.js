// One archive run: how it stands, its slides with their differentials, its files.

import { differential } from "./differential.js";
import { bytes, el, fill, note, number, own, plural } from "./dom.js";
import { RunLine, isOpen, title, watch } from "./progress.js";
import { ask } from "./requests.js";

const FILES_SHOWN = 30;
const AGAIN_MS = 4000; // slides of a run that goes on are asked for this often

/** Shows a run; returns what is to be done when it is left. */
export function showRun(main, id, { may }) {
  main.dataset.page = "archives";
  const heading = el("h1", { tabindex: "-1" }, "Archive run");
  const line = el("ul.runs");
  const problems = el("div");
  const slides = el("section", { "aria-label": "Slides" });
  const files = el("section", { "aria-label": "Files" });
  const shown = new Map(); // slides that are folded out
  let stop = () => {};
  let timer = null;
  let gone = false;
  fill(main, el("p.small", {}, el("a", { href: "#/archives" }, "All runs")), heading, line, problems,
    el("p", {}, el("a.button", { href: `#/archives/${id}/review` }, "Review cells")), slides, files);
  begin();
  return () => {
    gone = true;
    clearTimeout(timer);
    stop();
  };

  async function begin() {
    try {
      const view = await ask(`/v1/archives/${id}`);
      heading.textContent = title(view);
      document.title = `${title(view)} · Blood cells`;
      const run = new RunLine(view, { may });
      fill(line, run.element);
      stop = watch(view, (now) => {
        run.show(now);
        fill(problems, ...now.problems.map((problem) => note("warn", `${problem.uri}: ${problem.detail}`)));
        if (!isOpen(now)) refresh(false);
      });
      if (isOpen(view)) refresh(true);
    } catch (error) {
      fill(line, note("bad", error.message));
    }
  }

  async function refresh(goesOn) {
    clearTimeout(timer);
    try {
      const answer = await ask(`/v1/archives/${id}/slides`);
      if (gone) return;
      showSlides(answer);
      showFiles((await ask(`/v1/archives/${id}/files`)).files);
    } catch (error) {
      if (error.status !== 404 && error.status !== 409) fill(slides, note("bad", error.message));
    }
    if (goesOn && !gone) timer = setTimeout(() => refresh(true), AGAIN_MS);
  }

  function showSlides({ total, slides: rows }) {
    for (const part of slides.querySelectorAll("details")) shown.set(part.dataset.slide, part.open);
    fill(slides, el("h2", {}, plural(total, "slide")),
      ...rows.map((row, place) => slide(row, shown.get(row.slide_id) ?? (rows.length === 1 && place === 0))));
  }

  function slide({ slide_id: name, machine, corrected, num_reviewed: reviewed }, open) {
    const body = el("div");
    const part = el("details.slide", { "data-slide": name, toggle: () => {
      if (part.open && !body.firstChild) fill(body, differential(machine, corrected), link);
    } }, el("summary", {}, el("strong", {}, name), el("span.small", {},
      ` ${plural(machine.num_scored, "cell")}, ${number(machine.num_review)} for review` +
      (machine.num_quarantined ? `, ${number(machine.num_quarantined)} in quarantine` : "") +
      (reviewed ? `, ${number(reviewed)} reviewed` : ""))), body);
    const link = el("p.small", {}, el("a", { href: `#/archives/${id}/review?slide=${encodeURIComponent(name)}` },
      "Review the cells of this slide"));
    part.open = open;
    if (open) fill(body, differential(machine, corrected), link);
    return part;
  }

  function showFiles(all) {
    const parts = all.filter((file) => own(file.url));
    fill(files, el("h2", {}, "Files"),
      el("ul.files", {}, ...parts.slice(0, FILES_SHOWN).map((file) => el("li", {},
        el("a", { href: own(file.url), target: "_blank", rel: "noopener" },
          file.name === "report.html" ? "The report" : file.name),
        el("span.small", {}, ` ${bytes(file.bytes)}`)))),
      parts.length > FILES_SHOWN
        ? el("p.small", {}, `and ${number(parts.length - FILES_SHOWN)} more, listed by `,
          el("code", {}, `/v1/archives/${id}/files`)) : null);
  }
}
