// Single cells: images are dropped or chosen, sent in parts, and shown as cards.

import { CellCard } from "./cells.js";
import { CLASSES, NO_CELL_TYPE, colour, inWords } from "./classes.js";
import { bytes, el, fill, note, number, plural, say } from "./dom.js";
import { ask } from "./requests.js";
import { isArchive, startUpload } from "./upload.js";

const MOST_IMAGES = 64; // a request
const MOST_BYTES = 48 * 2 ** 20; // a request; the endpoint takes 64 MiB by default
const MOST_SHOWN = 2000;

/** The view of single cells; it keeps its cells until `forget`. */
export function createCells(context) {
  const view = new Cells(context);
  return { show: (main) => view.show(main), forget: () => view.clear() };
}

class Cells {
  constructor(context) {
    this.context = context;
    this.cards = [];
    this.sending = null; // an AbortController while something is sent
    this.told = el("div");
    this.summary = el("div.summary");
    this.list = el("ul.cells", { "aria-label": "Cells" });
    const archives = context.may("archives");
    this.element = el("div", {},
      el("h1", { tabindex: "-1" }, "Cells"),
      dropBox({
        label: "Drop images of single cells here, or choose them",
        hint: archives
          ? "JPEG, PNG, BMP, TIFF or WebP; one cell an image. A .zip, .tar or .tar.gz becomes an archive run."
          : "JPEG, PNG, BMP, TIFF or WebP; one cell an image.",
        taken: (files) => this.take(files),
      }),
      this.told, this.summary, this.list);
  }

  show(main) {
    main.dataset.page = "cells";
    fill(main, this.element);
  }

  clear() {
    if (this.sending) this.sending.abort();
    for (const card of this.cards) card.forget();
    this.cards = [];
    fill(this.list);
    fill(this.told);
    this.recount();
  }

  take(files) {
    fill(this.told);
    const packed = files.filter(isArchive);
    let images = files.filter((file) => !isArchive(file));
    if (packed.length && this.context.may("archives")) {
      for (const file of packed) startUpload(file);
      location.hash = "#/archives";
    } else if (packed.length) {
      fill(this.told, note("warn", "You may not start archive runs; ask the operator for the role ",
        el("code", {}, "archives"), ", or drop the images themselves."));
    }
    const room = MOST_SHOWN - this.cards.length;
    if (images.length > room) {
      fill(this.told, note("warn", `The page holds ${number(MOST_SHOWN)} cells at a time: ` +
        `${plural(images.length - room, "image")} left out. Clear the list, or pack many images ` +
        "as a .zip or .tar: that becomes an archive run, with differentials."));
      images = images.slice(0, room);
    }
    const cards = images.map((file) => new CellCard(file));
    this.cards.push(...cards);
    this.list.append(...cards.map((card) => card.element));
    this.send();
  }

  async send() {
    if (this.sending) return; // what came meanwhile is sent by the loop that runs
    this.sending = new AbortController();
    const { signal } = this.sending;
    try {
      for (let part = this.nextPart(); part.length && !signal.aborted; part = this.nextPart()) {
        this.recount();
        await this.sendPart(part, signal);
      }
    } finally {
      this.sending = null;
      this.recount();
    }
    const { scored, refused, unsent, doubtful } = this.counts();
    if (this.cards.length) {
      say(`${plural(scored, "cell")} classified, ${doubtful} to be looked at, ` +
        `${refused + unsent} without a class.`);
    }
  }

  nextPart() {
    const part = [];
    let size = 0;
    for (const card of this.cards) {
      if (card.state !== "waiting") continue;
      size += card.file.size;
      if (part.length === MOST_IMAGES || (part.length && size > MOST_BYTES)) break;
      part.push(card);
    }
    return part;
  }

  async sendPart(part, signal) {
    const body = new FormData();
    for (const card of part) body.append("image", card.file, card.file.name);
    try {
      const answer = await ask("/v1/classify", { method: "POST", body, signal,
        waiting: (seconds, error) => this.waits(seconds, error) });
      if (answer.images.length !== part.length) throw new Error("Some images were not answered.");
      fill(this.told);
      part.forEach((card, place) => card.answer(answer.images[place], answer.bundle_digest));
    } catch (error) {
      const why = signal.aborted ? "Not sent: stopped." : `Not scored: ${error.message}`;
      for (const card of part) card.failed("unsent", why);
      if (error.status === 401) this.sending.abort();
    }
  }

  waits(seconds, error) {
    const why = error.code === "queue_full" ? "The endpoint is busy" : error.message.replace(/\.$/, "");
    const sentence = `${why}; going on in ${Math.ceil(seconds)} s. Nothing is lost.`;
    fill(this.told, note("warn", sentence));
    say(sentence, { rarely: true });
  }

  counts() {
    const counted = { waiting: 0, scored: 0, refused: 0, unsent: 0, doubtful: 0 };
    for (const card of this.cards) {
      counted[card.state] += 1;
      if (card.element.dataset.doubtful === "true") counted.doubtful += 1;
    }
    return counted;
  }

  recount() {
    if (!this.cards.length) {
      fill(this.summary);
      return;
    }
    const { waiting, scored, refused, unsent, doubtful } = this.counts();
    const total = this.cards.length;
    const busy = Boolean(this.sending);
    const given = this.cards.filter((card) => card.state === "scored").map(({ image }) =>
      (image.out_of_domain ? NO_CELL_TYPE : image.predicted_class));
    const chips = [...CLASSES, NO_CELL_TYPE].map((name) => [name, given.filter((one) => one === name).length]);
    fill(this.summary,
      busy ? el("progress", { max: total, value: total - waiting, "aria-label": "Images classified" }) : null,
      el("p", {}, el("strong", {}, `${number(scored)} of ${plural(total, "image")} classified`),
        doubtful ? `, ${number(doubtful)} to be looked at by a person` : "",
        refused ? `, ${number(refused)} cannot be scored` : "",
        unsent ? `, ${number(unsent)} not scored` : "", "."),
      el("ul.legend", {}, ...chips.filter(([, count]) => count).map(([name, count]) =>
        el(`li.${colour(name)}`, {}, el("span.dot"), `${inWords(name)} ${number(count)}`))),
      scored ? el("p.small", {}, "Counts of what the model said, doubtful cells among them; they are no " +
        "differential. One with intervals comes from an archive run.") : null,
      el("div.actions", {},
        this.filter(),
        busy ? action("Stop", () => this.stop()) : null,
        unsent && !busy ? action("Send again", () => this.again()) : null,
        action("Clear", () => this.clear())));
  }

  filter() {
    const choices = [["", "all"], ["doubtful", "to be looked at"], ["faulty", "without a class"]];
    const select = el("select", { change: () => { this.list.dataset.only = select.value; } },
      ...choices.map(([value, words]) => el("option", { value }, words)));
    select.value = this.list.dataset.only || "";
    return el("label.small", {}, "Show ", select);
  }

  stop() {
    this.sending.abort();
    for (const card of this.cards) {
      if (card.state === "waiting") card.failed("unsent", "Not sent: stopped.");
    }
  }

  again() {
    for (const card of this.cards) if (card.state === "unsent") card.wait();
    this.send();
  }
}

function action(words, click) {
  return el("button", { type: "button", click }, words);
}

/** A box that takes files by drop, mouse or keyboard; `taken` gets an array of them. */
export function dropBox({ label, hint, accept = null, taken }) {
  const told = el("div");
  const input = el("input", { type: "file", multiple: true, accept, change: () => {
    give([...input.files]);
    input.value = ""; // the same file may be chosen again
  } });
  const box = el("label.drop", {
    dragover: (event) => { event.preventDefault(); box.classList.add("over"); },
    dragleave: () => box.classList.remove("over"),
    drop: (event) => {
      event.preventDefault();
      box.classList.remove("over");
      const folders = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.())
        .filter((entry) => entry && entry.isDirectory).map((entry) => entry.name);
      const files = [...event.dataTransfer.files].filter((file) => !folders.includes(file.name));
      fill(told, folders.length ? note("warn", "A folder cannot be dropped: choose the images in it, " +
        "or pack it as .zip or .tar.") : null);
      give(files);
    },
  }, input, el("strong", {}, label), el("span.small", {}, hint));
  return el("div", {}, box, told);

  function give(files) {
    const empty = files.filter((file) => file.size === 0);
    if (empty.length) {
      fill(told, note("warn", `${plural(empty.length, "file")} of ${bytes(0)} left out: ${empty[0].name}`));
    }
    const full = files.filter((file) => file.size > 0);
    if (full.length) taken(full);
  }
}
