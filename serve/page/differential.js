// A slide's differential: the machine's, and beside it the one that people corrected.

import { CLASSES, WHITE, colour, inWords } from "./classes.js";
import { el, note, plural, svg } from "./dom.js";

const WIDTH = 1000;
const HEIGHT = 20;

/** The differential of one entry of `GET …/slides`, as elements. */
export function differential(slide, runId) {
  const { machine, corrected } = slide;
  const query = new URLSearchParams({ slide: slide.slide_id });
  const parts = [el("h3", {}, "Differential of ", el("span.name", {}, slide.slide_id))];
  if (WHITE.every((name) => machine[`estimate_${name}`] === null)) {
    parts.push(note("warn", "No white cell was found on this slide; there is no differential."));
    return parts;
  }
  const apart = CLASSES.filter((name) => !WHITE.includes(name));
  const both = [machine, corrected].filter(Boolean);
  parts.push(
    el("p.small", {}, "Bar: estimate, corrected for the model's known errors. Whisker: 95 % interval. " +
      "Grey tick: what was counted. From ", plural(machine.num_scored, "scored cell"),
      slide.num_reviewed ? `, ${plural(slide.num_reviewed, "cell")} of them reviewed by people.` : "."),
    table("White cells, per cent", WHITE, machine, corrected, scale(both, WHITE, 100)),
    table("Beside them, per 100 white cells", apart, machine, corrected, scale(both, apart, Infinity)));
  if (!corrected) {
    parts.push(el("p.small", {}, slide.num_reviewed
      ? "Cells were reviewed, but the run's model is not at hand here to correct the differential with. "
      : "Nobody has reviewed a cell of this slide yet. "));
  }
  parts.push(el("p", {}, el("a", { href: `#/archives/${runId}/review?${query}` }, "Cells of this slide")));
  return parts;
}

/** The end of the scale: a multiple of ten that holds every interval, so that both columns compare. */
function scale(rows, names, most) {
  const highest = Math.max(...rows.flatMap((row) => names.map((name) => row[`high_${name}`] ?? 0)), 10);
  return Math.min(most, 10 * Math.ceil(highest / 10));
}

function table(caption, names, machine, corrected, limit) {
  const columns = [["Machine", machine], ...(corrected ? [["Corrected by people", corrected]] : [])];
  const head = el("tr", {}, el("th", { scope: "col" }, "Class"),
    ...columns.map(([words]) => el("th", { scope: "col", colspan: 2 }, words)));
  const rows = names.map((name) => el(`tr.${colour(name)}`, {},
    el("th", { scope: "row" }, inWords(name)),
    ...columns.flatMap(([words, row]) => figures(row, name, limit, words))));
  return el(`table.differential${corrected ? ".both" : ""}`, {}, el("caption", {}, `${caption}, scale 0–${limit}`),
    el("thead", {}, head), el("tbody", {}, ...rows));
}

function figures(row, name, limit, words) {
  const [estimate, low, high, counted] = ["estimate", "low", "high", "percent"]
    .map((figure) => row[`${figure}_${name}`]);
  if (estimate === null || estimate === undefined) {
    return [el("td.strip"), el("td.figure", {}, "not known")];
  }
  const title = `${words}, ${inWords(name)}: ${estimate.toFixed(1)}, 95 % interval ` +
    `${low.toFixed(1)} to ${high.toFixed(1)}, counted ${counted.toFixed(1)}`;
  const at = (value) => (WIDTH * Math.min(value, limit)) / limit;
  const line = (kind, x1, y1, x2, y2) => svg("line", { class: kind, x1, y1, x2, y2 });
  const picture = svg("svg", { class: "interval", viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    preserveAspectRatio: "none", role: "img", "aria-label": title },
  svg("title", {}, title),
  svg("rect", { class: "trough", x: 0, y: 4, width: WIDTH, height: 12 }),
  svg("rect", { class: "fill", x: 0, y: 4, width: at(estimate), height: 12 }),
  line("raw", at(counted), 2, at(counted), 18),
  line("whisker", at(low), 10, at(high), 10),
  line("whisker", at(low), 6, at(low), 14),
  line("whisker", at(high), 6, at(high), 14));
  return [
    el("td.strip", {}, picture),
    el("td.figure", { "data-who": words }, estimate.toFixed(1),
      el("span.range", {}, `${low.toFixed(1)}–${high.toFixed(1)}`)),
  ];
}
