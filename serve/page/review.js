// The review queue: one cell at a time, its class confirmed or corrected with a key.

import { CLASSES, NOT_A_CELL, colour, inWords } from "./classes.js";
import { flags, probabilities } from "./cells.js";
import { el, fill, lastPart, note, number, own, percent, plural, say } from "./dom.js";
import { ask } from "./requests.js";

const PAGE = 50;

/** Shows the queue of a run, or of one of its slides; returns what is to be done when it is left. */
export function showReview(main, id, { may, slide }) {
  main.dataset.page = "archives";
  const view = new Queue(id, slide, may("review"));
  const words = slide ? `Review cells of ${slide}` : "Review cells";
  fill(main, el("p.small", {}, el("a", { href: `#/archives/${id}` }, "Back to the run")),
    el("h1", { tabindex: "-1" }, words), view.element);
  const key = (event) => view.key(event);
  document.addEventListener("keydown", key);
  view.load();
  return () => document.removeEventListener("keydown", key);
}

class Queue {
  constructor(id, slide, mayReview) {
    this.id = id;
    this.slide = slide;
    this.mayReview = mayReview;
    this.cells = [];
    this.total = 0;
    this.at = 0;
    this.every = false;
    this.busy = false;
    this.told = el("div");
    this.body = el("div");
    const all = el("input", { type: "checkbox", change: () => { this.every = all.checked; this.load(); } });
    this.element = el("div.review", {},
      el("p.small", {}, mayReview
        ? "Keys: 1 to 8 choose a class, n: not a cell, Enter confirms the class that stands, arrows move."
        : "You may look, but not review; ask the operator for the role review."),
      el("label.small", {}, all, " show every cell, not only those that wait for a person"),
      this.told, this.body);
  }

  async load() {
    await this.fetchFrom(0);
    this.at = 0;
    this.draw();
  }

  async fetchFrom(offset) {
    const slide = this.slide ? `&slide=${encodeURIComponent(this.slide)}` : "";
    try {
      const page = await ask(`/v1/archives/${this.id}/review?limit=${PAGE}&offset=${offset}&all=${this.every}${slide}`);
      this.total = page.total;
      this.cells = offset ? [...this.cells, ...page.cells] : page.cells;
      fill(this.told);
    } catch (error) {
      fill(this.told, note("bad", error.message));
    }
  }

  draw() {
    const cell = this.cells[this.at];
    if (!cell) {
      fill(this.body, note("good", this.total ? "That was the last one." : "No cell waits for a person."));
      return;
    }
    const stands = cell.reviewed_class ?? cell.predicted_class;
    const choices = [...CLASSES, NOT_A_CELL].map((name, place) => el(`button.choice.${colour(name)}`, {
      type: "button", disabled: !this.mayReview, "aria-pressed": String(name === stands),
      click: () => this.review(name),
    }, el("kbd", {}, name === NOT_A_CELL ? "n" : String(place + 1)), el("span.dot"), inWords(name)));
    fill(this.body,
      el("p", {}, `${number(this.at + 1)} of ${plural(this.total, "cell")}`),
      el("div.cell", {},
        el("img", { src: own(cell.image_url), alt: "The cell", width: 240, height: 240 }),
        el("div", {},
          el("p.name", {}, lastPart(cell.image_uri)),
          el("p.small.uri", {}, cell.image_uri),
          el(`p.class.${colour(cell.predicted_class)}`, {}, el("span.dot"),
            `Machine: ${inWords(cell.predicted_class)}`, el("span.sure", {}, percent(cell.confidence))),
          ...flags(cell),
          cell.reviewed_class ? el("p.reviewed", {},
            `${cell.reviewed_by} says: ${inWords(cell.reviewed_class)}`) : null,
          probabilities(cell.probabilities, "", true))),
      el("div.choices", { role: "group", "aria-label": "What is it?" }, ...choices),
      el("div.actions", {},
        el("button", { type: "button", disabled: this.at === 0, click: () => this.move(-1) }, "Previous"),
        el("button", { type: "button", disabled: this.at + 1 >= this.total, click: () => this.move(1) }, "Next")));
  }

  async move(by) {
    const wanted = this.at + by;
    if (wanted < 0 || wanted > this.cells.length) return;
    if (wanted === this.cells.length && this.cells.length < this.total) await this.fetchFrom(this.cells.length);
    this.at = Math.min(wanted, this.cells.length);
    this.draw();
  }

  async review(name) {
    const cell = this.cells[this.at];
    if (!cell || this.busy || !this.mayReview) return;
    this.busy = true;
    try {
      const given = await ask(`/v1/archives/${this.id}/reviews`,
        { json: { image_uri: cell.image_uri, class: name, revision: cell.revision } });
      Object.assign(cell, { revision: given.revision, reviewed_class: given.class, reviewed_by: given.by });
      fill(this.told, note("good", `Kept: ${lastPart(cell.image_uri)} is ${inWords(given.class)}.`));
      say(`Kept: ${inWords(given.class)}.`);
      await this.move(1);
    } catch (error) {
      if (error.code !== "reviewed_meanwhile") {
        fill(this.told, note("bad", error.message));
        return;
      }
      const { current } = error.body;
      Object.assign(cell, current
        ? { revision: current.revision, reviewed_class: current.class, reviewed_by: current.by }
        : { revision: 0, reviewed_class: null, reviewed_by: null });
      fill(this.told, note("warn", current
        ? `${current.by} was quicker and says ${inWords(current.class)}. Nothing of yours was kept; ` +
          "choose again if you see it otherwise."
        : error.message));
      this.draw();
    } finally {
      this.busy = false;
    }
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input:not([type=checkbox]), select, summary, a")) return;
    const cell = this.cells[this.at];
    if (event.key === "ArrowRight" || event.key === "ArrowLeft") this.move(event.key === "ArrowRight" ? 1 : -1);
    else if (!cell) return;
    else if (event.key >= "1" && event.key <= String(CLASSES.length)) this.review(CLASSES[Number(event.key) - 1]);
    else if (event.key === "n") this.review(NOT_A_CELL);
    else if (event.key === "Enter" && !event.target.matches("button")) {
      this.review(cell.reviewed_class ?? cell.predicted_class);
    } else return;
    event.preventDefault();
  }
}
