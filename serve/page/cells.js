// One classified cell as a card: its picture, class, doubts, and on demand where the model looked.

import { CLASSES, NO_CELL_TYPE, colour, inWords } from "./classes.js";
import { el, fill, percent } from "./dom.js";
import { ask } from "./requests.js";

const OVERLAY = "data:image/png;base64,";

/** A card for a file that has not been scored yet. */
export class CellCard {
  constructor(file) {
    this.file = file;
    this.state = "waiting"; // then "scored", "refused" (the image's fault) or "unsent"
    this.url = URL.createObjectURL(file);
    this.picture = this.thumbnail(this.url, "");
    this.told = el("div.told", {}, el("p.small", {}, "waits"));
    this.element = el("li", { "data-state": this.state },
      this.picture, el("p.name", { title: file.name }, file.name), this.told);
  }

  thumbnail(url, alt) {
    return el("img", { src: url, alt, loading: "lazy", decoding: "async", error: () => {
      this.picture.replaceWith(this.picture = el("p.gone", {}, "This browser cannot show it"));
    } });
  }

  /** Shows an entry of the endpoint's answer. */
  answer(image, digest) {
    if (image.error) {
      this.failed("refused", `Cannot be scored: ${image.error.message}.`);
      return;
    }
    this.image = image;
    this.set("scored", image.needs_review || image.out_of_domain);
    fill(this.told, ...verdict(image), ...flags(image),
      this.looking(),
      probabilities(image.probabilities, `Answered by ${String(digest).slice(0, 19)}…`));
  }

  /** Shows why there is no class. */
  failed(state, sentence) {
    this.set(state, false);
    fill(this.told, el("p.small.bad", {}, sentence));
  }

  wait() {
    this.set("waiting", false);
    fill(this.told, el("p.small", {}, "waits"));
  }

  set(state, doubtful) {
    this.state = state;
    this.element.dataset.state = state;
    this.element.dataset.doubtful = String(doubtful);
  }

  looking() {
    const label = `Show where the model looked: ${this.file.name}`;
    const button = el("button.small", { type: "button", "aria-pressed": "false", "aria-label": label },
      "Where it looked");
    const told = el("span");
    let overlay = null;
    button.addEventListener("click", async () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      if (on && overlay === null) {
        button.disabled = true;
        fill(told, " asks …");
        try {
          overlay = await explained(this.file, (seconds) => fill(told, ` waits ${Math.ceil(seconds)} s …`));
          fill(told);
        } catch (error) {
          fill(told, ` ${error.message}`);
          return;
        } finally {
          button.disabled = false;
        }
      }
      button.setAttribute("aria-pressed", String(on));
      const alt = on ? `Heat map over ${this.file.name}: where the model looked` : "";
      const next = this.thumbnail(on ? overlay : this.url, alt);
      this.picture.replaceWith(next);
      this.picture = next;
      fill(told, on ? " Heat shows what spoke for this class; it proves nothing." : "");
    });
    return el("p.small.looking", {}, button, told);
  }

  forget() {
    URL.revokeObjectURL(this.url);
  }
}

/** The class given; of an image that is none of the eight, only what it is most like. */
function verdict(image) {
  const word = inWords(image.predicted_class);
  if (image.out_of_domain) {
    return [el("p.class.c-none", {}, el("span.word", {}, NO_CELL_TYPE)),
      el("p.small", {}, `most like ${word}, ${percent(image.confidence)}`)];
  }
  return [el(`p.class.${colour(image.predicted_class)}`, {},
    el("span.word", {}, el("span.dot"), word),
    el("span.sure", { title: "confidence" }, percent(image.confidence)))];
}

/** What speaks against a class, in words. */
export function flags(cell) {
  return [
    cell.out_of_domain
      ? el("p.flag.bad", { title: "Unlike each of the eight cell types, as far as the model can tell" }, "Out of domain: do not rely on it")
      : null,
    cell.needs_review ? el("p.flag.warn", {}, "Needs review") : null,
  ].filter(Boolean);
}

/** All eight probabilities as bars, folded. */
export function probabilities(given, remark = "", open = false) {
  const rows = [...CLASSES].sort((one, other) => given[other] - given[one]).map((name) =>
    el("tr", {}, el("th", { scope: "row" }, inWords(name)),
      el("td.wide", {}, bar(given[name], name)),
      el("td", {}, percent(given[name]))));
  return el("details", { open }, el("summary.small", {}, "All eight"),
    el("table.bars", {}, el("tbody", {}, ...rows)), remark ? el("p.small", {}, remark) : null);
}

function bar(share, name) {
  const meter = el(`span.share.${colour(name)}`, { "aria-hidden": "true" }, el("span"));
  meter.firstChild.style.width = `${100 * share}%`;
  return meter;
}

async function explained(file, waiting) {
  const body = new FormData();
  body.append("image", file, file.name);
  const answer = await ask("/v1/classify?explain=true", { method: "POST", body, waiting });
  const [image] = answer.images;
  if (image.error) throw new Error(image.error.message);
  if (!String(image.overlay).startsWith(OVERLAY)) throw new Error("There is no overlay.");
  return image.overlay;
}
