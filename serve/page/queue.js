// The cells that wait for a person, fetched as they are needed. Knows nothing of how they look.

import { ask } from "./requests.js";

const PAGE = 50;
const MOST_PAGES = 40; // looked through for a cell not seen yet, at one go

/** The queue of a run, or of one slide of it. */
export class Queue {
  constructor(runId, { slide = null, every = false } = {}) {
    this.path = `/v1/archives/${encodeURIComponent(runId)}`;
    this.slide = slide;
    this.every = every;
    this.cells = [];
    this.total = 0;
    this.known = new Set();
  }

  /** Makes sure that there is a cell at `place`, if the queue goes that far. */
  async reach(place) {
    while (place >= this.cells.length && (await this.fetchMore()));
    return this.cells[place] || null;
  }

  // Cells that are reviewed move to the queue's end, and those behind them up; so what comes next
  // begins after the cells we have that are still unreviewed, and some may come twice.
  async fetchMore() {
    let offset = this.cells.filter((cell) => cell.revision === 0).length;
    for (let page = 0; page < MOST_PAGES; page += 1) {
      const query = new URLSearchParams({ offset, limit: PAGE });
      if (this.slide) query.set("slide", this.slide);
      if (this.every) query.set("all", "true");
      const found = await ask(`${this.path}/review?${query}`);
      this.total = found.total;
      const fresh = found.cells.filter((cell) => !this.known.has(cell.image_uri));
      for (const cell of fresh) this.known.add(cell.image_uri);
      this.cells.push(...fresh);
      if (fresh.length) return true;
      offset += PAGE;
      if (offset >= found.total) return false;
    }
    return false;
  }

  /**
   * Says what a cell is.
   * @returns null where it stands, or the review that somebody else wrote meanwhile.
   */
  async say(cell, verdict) {
    try {
      const review = await ask(`${this.path}/reviews`, {
        json: { image_uri: cell.image_uri, class: verdict, revision: cell.revision },
      });
      this.stands(cell, review);
      return null;
    } catch (error) {
      const { current } = error.body || {};
      if (error.code === "reviewed_meanwhile" && !current) cell.revision = 0; // the review is gone
      if (error.code !== "reviewed_meanwhile" || !current) throw error;
      return current;
    }
  }

  /** Takes over a review that stands in the run. */
  stands(cell, review) {
    cell.revision = review.revision;
    cell.reviewed_class = review.class;
    cell.reviewed_by = review.by;
  }
}
