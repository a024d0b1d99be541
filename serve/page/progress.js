// A run's progress: told by the endpoint as it goes on, shown as one line with a bar.

import { el, fill, lastPart, moment, note, number, plural, say, duration } from "./dom.js";
import { ask } from "./requests.js";

const OPEN = ["queued", "planning", "running"];

export const isOpen = (view) => OPEN.includes(view.status);

/** Calls `told` with each state of a run until it is finished; returns what stops it. */
export function watch(view, told) {
  told(view);
  if (!isOpen(view)) return () => {};
  const source = new EventSource(`/v1/archives/${view.id}/events`);
  source.addEventListener("progress", (event) => told(JSON.parse(event.data)));
  source.addEventListener("end", (event) => {
    source.close();
    const last = JSON.parse(event.data);
    told(last);
    say(`${title(last)}: ${last.status}.`);
  });
  return () => source.close();
}

/** What a run is called: its stores' names. */
export function title(view) {
  const [first, ...others] = view.store;
  return lastPart(first) + (others.length ? ` and ${plural(others.length, "more store")}` : "");
}

/** A run's state in a sentence. */
export function state(view) {
  const { listed, scored, quarantined } = view.counts;
  if (view.status === "queued") return "waits for its turn";
  if (view.status === "planning") return "lists what there is";
  const done = `${number(scored)} of ${plural(listed, "image")} scored` +
    (quarantined ? `, ${number(quarantined)} in quarantine` : "");
  if (!isOpen(view)) return `${view.status}: ${done}`;
  const speed = view.images_per_second ? `, ${number(Math.round(view.images_per_second))} images/s` : "";
  const left = view.seconds_left === null ? "" : `, ${duration(view.seconds_left)} left`;
  return done + speed + left;
}

/** The bar, and the buttons that stop a run or let it go on. */
export class RunLine {
  constructor(view, { may }) {
    this.may = may;
    this.words = el("p.state");
    this.bar = el("progress", { max: 1, value: 0, "aria-label": `Progress of ${title(view)}` });
    this.buttons = el("span.actions");
    this.told = el("div");
    this.element = el("li.run", {},
      el("p.name", {}, el("a", { href: `#/archives/${view.id}` }, title(view)),
        el("span.small", {}, ` ${moment(view.created)}, ${view.created_by}`)),
      this.words, this.bar, this.buttons, this.told);
  }

  show(view) {
    const { listed, scored, quarantined } = view.counts;
    this.element.dataset.status = view.status;
    this.words.textContent = state(view);
    this.bar.max = listed || 1;
    this.bar.value = scored + quarantined;
    fill(this.told, view.message && !isOpen(view) ? note("warn", view.message) : null);
    const wanted = !this.may("archives") || view.status === "complete" ? ""
      : isOpen(view) ? "cancel" : "resume";
    if (wanted === this.wanted) return;
    this.wanted = wanted;
    fill(this.buttons, wanted
      ? el("button", { type: "button", click: () => this.order(view, wanted) },
        wanted === "cancel" ? "Stop" : "Go on")
      : null);
  }

  async order(view, what) {
    try {
      const now = await ask(`/v1/archives/${view.id}/${what}`, { method: "POST" });
      watch(now, (next) => this.show(next));
    } catch (error) {
      fill(this.told, note("bad", error.message));
    }
  }
}
