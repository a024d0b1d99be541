// Review: one cell at a time, large; a person confirms or corrects its class, with keys if they like.

import { flags, probabilities } from "./cells.js";
import { CLASSES, NOT_A_CELL, colour, inWords } from "./classes.js";
import { el, fill, lastPart, moment, note, number, own, percent, say } from "./dom.js";
import { Queue } from "./queue.js";
import { ask } from "./requests.js";

/** Shows the queue of a run; returns a function that ends it. */
export function showReview(main, id, { may, slide }) {
  main.dataset.page = "archives";
  const view = new Review(main, id, may("review"), slide);
  return () => view.end();
}

class Review {
  constructor(main, id, writes, slide) {
    Object.assign(this, { id, writes, slide, every: false, place: 0, busy: false, seen: false, over: false });
    this.told = el("div");
    this.stage = el("div.stage-part", { tabindex: "-1" });
    this.position = el("p.small");
    this.slides = el("select", { id: "slide", change: () => this.choose({ slide: this.slides.value || null }) },
      el("option", { value: "" }, "all slides"));
    const all = el("input", { type: "checkbox", change: () => this.choose({ every: all.checked }) });
    fill(main,
      el("p.small", {}, el("a", { href: `#/archives/${id}` }, "Back to the run")),
      el("h1", { tabindex: "-1" }, "Review"),
      el("div.actions", {},
        el("label", {}, "Slide ", this.slides),
        el("label.check", {}, all, " also cells that the model is sure of")),
      this.position, this.stage, this.told,
      writes ? el("p.small.keys", {}, ...keysTold()) : note("warn", "You may look, but not review: your token lacks the role review."));
    this.listener = (event) => this.key(event);
    document.addEventListener("keydown", this.listener);
    this.listSlides();
    this.choose({});
  }

  end() {
    this.over = true;
    document.removeEventListener("keydown", this.listener);
  }

  async listSlides() {
    try {
      const { slides } = await ask(`/v1/archives/${encodeURIComponent(this.id)}/slides`, { patient: false });
      const ids = slides.map((entry) => entry.slide_id);
      if (this.slide && !ids.includes(this.slide)) ids.unshift(this.slide);
      this.slides.append(...ids.map((name) => el("option", { value: name }, name)));
      this.slides.value = this.slide || "";
    } catch {
      // without the list, the queue of all slides remains
    }
  }

  choose({ slide = this.slide, every = this.every }) {
    Object.assign(this, { slide, every, queue: new Queue(this.id, { slide, every }) });
    this.go(0);
  }

  async go(place) {
    const { queue } = this;
    if (place < 0) return;
    try {
      const cell = await queue.reach(place);
      if (this.over || queue !== this.queue) return;
      this.place = Math.min(place, queue.cells.length);
      delete this.told.dataset.asks;
      const focused = document.activeElement;
      const moved = focused === document.body || this.stage.contains(focused) || this.told.contains(focused);
      fill(this.told);
      if (cell) this.show(cell);
      else this.showEnd();
      if (moved) this.stage.focus({ preventScroll: true }); // what had the focus is gone
    } catch (error) {
      if (!this.over) fill(this.told, note("bad", error.message));
    }
  }

  get cell() {
    return this.queue.cells[this.place] || null;
  }

  showEnd() {
    const none = this.queue.cells.length === 0;
    const left = this.queue.cells.filter((cell) => cell.revision === 0).length;
    const words = none ? "No cell waits for a person here."
      : left ? `That was the last cell; ${number(left)} were passed over.` : "That was the last cell. All are reviewed.";
    fill(this.position);
    fill(this.stage, el("p.lead", { tabindex: "-1" }, words), el("div.actions", {},
      none ? null : el("button", { type: "button", click: () => this.go(this.place - 1) }, "Back"),
      el("a.button", { href: `#/archives/${this.id}` }, "To the run and its differentials")));
    say(words);
  }

  show(cell) {
    this.seen = false; // nobody can judge a cell that is not there to be seen yet
    const picture = el("img.large", { src: own(cell.image_url), alt: "The cell",
      load: () => this.see(cell), error: () => {
        picture.replaceWith(el("p.gone.large", {}, "The picture cannot be shown; this cell cannot be reviewed here."));
      } });
    fill(this.position, `${number(this.place + 1)} of ${number(Math.max(this.queue.total, this.queue.cells.length))}`,
      ` · slide `, el("span.name", {}, cell.slide_id));
    fill(this.stage, el("div.picture", {}, picture, el("p.uri.small", { title: cell.image_uri }, lastPart(cell.image_uri))),
      el("div.verdict", {},
        el(`p.class.${colour(cell.predicted_class)}`, {},
          el("span.word", {}, el("span.dot"), inWords(cell.predicted_class)),
          el("span.sure", {}, percent(cell.confidence))),
        el("p.small", {}, "what the machine says"),
        ...flags(cell), this.standing(cell), this.choices(cell),
        probabilities(cell.probabilities),
        el("div.actions", {},
          el("button", { type: "button", disabled: this.place === 0, click: () => this.go(this.place - 1) }, "← Back"),
          el("button", { type: "button", click: () => this.go(this.place + 1) }, "Skip →"))));
    say(`Cell ${this.place + 1}: ${inWords(cell.predicted_class)}, ${percent(cell.confidence, 0)}.`);
    const next = this.queue.cells[this.place + 1];
    if (next) new Image().src = own(next.image_url); // so that it is there when its turn comes
  }

  see(cell) {
    if (cell !== this.cell) return;
    this.seen = true;
    for (const button of this.stage.querySelectorAll(".choices button")) button.disabled = false;
  }

  standing(cell) {
    if (!cell.revision) return null;
    return el("p.standing", {}, `${cell.reviewed_by || "Somebody"} said: `,
      el("strong", {}, inWords(cell.reviewed_class)), "; you may say otherwise.");
  }

  choices(cell) {
    if (!this.writes) return null;
    const choice = (key, verdict) => el(`button.choice.${colour(verdict)}`, { type: "button", disabled: true,
      "aria-keyshortcuts": key, "aria-pressed": String(cell.reviewed_class === verdict),
      "data-verdict": verdict, click: () => this.decide(verdict) },
    el("kbd", { "aria-hidden": "true" }, key), el("span.dot"), inWords(verdict));
    return el("div.choices", { role: "group", "aria-label": "What it is" },
      el("button.main.confirm", { type: "button", disabled: true, "aria-keyshortcuts": "Enter",
        click: () => this.decide(cell.predicted_class) },
      el("kbd", { "aria-hidden": "true" }, "Enter"), ` Yes, ${inWords(cell.predicted_class)}`),
      ...CLASSES.map((name, place) => choice(String(place + 1), name)),
      choice("n", NOT_A_CELL));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.cell) return;
    const at = event.target;
    if (at.closest && at.closest("input, select, textarea")) return;
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      event.preventDefault();
      if (!this.busy) this.go(this.place + (event.key === "ArrowLeft" ? -1 : 1));
      return;
    }
    if (event.repeat) return; // a key held down decides one cell, not fifty
    if (event.key === "Enter") {
      if (at.closest && at.closest("button, a, summary")) return; // it presses that
      event.preventDefault();
      this.decide(this.cell.predicted_class);
    } else if (event.key.toLowerCase() === "n") {
      this.decide(NOT_A_CELL);
    } else if (/^[1-8]$/.test(event.key)) {
      this.decide(CLASSES[Number(event.key) - 1]);
    }
  }

  async decide(verdict) {
    const { cell, queue } = this;
    if (!this.writes || !this.seen || this.busy || !cell || this.told.dataset.asks === "true") return;
    this.busy = true;
    try {
      const theirs = await queue.say(cell, verdict);
      if (this.over) return;
      if (theirs) this.tellConflict(cell, verdict, theirs);
      else {
        say(`Saved: ${inWords(verdict)}.`);
        if (cell === this.cell) await this.go(this.place + 1);
      }
    } catch (error) {
      if (!this.over) fill(this.told, note("bad", `Not saved: ${error.message}`));
    } finally {
      this.busy = false;
    }
  }

  // Two people looked at one cell. Neither answer is thrown away: the second one decides, knowingly.
  tellConflict(cell, verdict, theirs) {
    const { queue } = this;
    const same = theirs.class === verdict;
    const settle = (click, words, kind = "") => el(`button${kind}`, { type: "button", click }, words);
    this.told.dataset.asks = "true";
    const done = (then) => () => {
      queue.stands(cell, theirs);
      delete this.told.dataset.asks;
      fill(this.told);
      if (cell === this.cell) then();
    };
    const keep = settle(done(() => this.go(this.place + 1)), same ? "Good" : `Keep ${inWords(theirs.class)}`, ".main");
    fill(this.told, el("div.note.warn", { role: "alert" },
      el("p", {}, el("strong", {}, theirs.by), " reviewed this cell while you looked at it (",
        moment(theirs.at), ") and said ", el("strong", {}, inWords(theirs.class)),
        same ? ", as you do. There is nothing left to do."
          : ["; you said ", inWords(verdict), ". Yours is not saved."].join("")),
      el("div.actions", {}, keep,
        same ? null : settle(done(() => this.decide(verdict)), `Say ${inWords(verdict)} all the same`))));
    keep.focus();
  }
}

function keysTold() {
  const key = (name) => el("kbd", {}, name);
  return ["Keys: ", key("Enter"), " confirms the machine's class, ", key("1"), "–", key("8"), " choose another, ",
    key("n"), " not a cell, ", key("←"), " ", key("→"), " move."];
}
