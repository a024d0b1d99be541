// A slide's differential as bars with intervals: the machine's, and beside it with reviews counted in.

import { CLASSES, WHITE, colour, inWords } from "./classes.js";
import { el, svg } from "./dom.js";

const ROW = 26;
const LABEL = 158;
const WIDTH = 620;
const AXIS = WIDTH - LABEL - 20;

/** A chart of one row of `slides.parquet`, or of two: as the machine has it, and as corrected. */
export function differential(machine, corrected = null) {
  const rows = corrected ? [machine, corrected] : [machine];
  const white = chart(WHITE, rows, 100, "%");
  const others = CLASSES.filter((name) => !WHITE.includes(name));
  const most = Math.max(10, ...rows.flatMap((row) => others.map((name) => row[`estimate_${name}`] ?? 0)));
  return el("figure.differential", {},
    el("figcaption.small", {}, "Estimate and 95 % interval, per cent of the white cells.",
      corrected ? " Upper bar: the machine's; lower, hatched: with reviews counted in." : null),
    white,
    el("p.small", {}, "Per 100 white cells:"),
    chart(others, rows, Math.ceil(most / 10) * 10, ""),
    table(machine, corrected));
}

function chart(names, rows, most, unit) {
  const high = rows.length * ROW - (rows.length > 1 ? 12 : 0);
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${names.length * (high + 6) + 22}`, role: "img",
    "aria-label": names.map((name) => `${inWords(name)} ${shown(rows[rows.length - 1], name)}`).join("; ") });
  const x = (value) => LABEL + (AXIS * Math.min(value, most)) / most;
  for (let tick = 0; tick <= 4; tick += 1) {
    const at = x((most * tick) / 4);
    const foot = names.length * (high + 6);
    picture.append(svg("line", { class: "grid", x1: at, x2: at, y1: 0, y2: foot }),
      svg("text", { class: "tick", x: at, y: foot + 16, "text-anchor": "middle" },
        `${(most * tick) / 4}${unit}`));
  }
  names.forEach((name, place) => {
    const top = place * (high + 6);
    picture.append(svg("text", { class: "label", x: LABEL - 10, y: top + high / 2 + 5, "text-anchor": "end" },
      inWords(name)));
    rows.forEach((row, which) => {
      const thick = rows.length > 1 ? 14 : 18;
      const y = top + which * (thick + 4) + 4;
      const value = row[`estimate_${name}`];
      if (value === null || value === undefined) return;
      picture.append(
        svg("rect", { class: `bar ${colour(name)}${which ? " reviewed" : ""}`, x: LABEL, y,
          width: Math.max(x(value) - LABEL, 1), height: thick, rx: 2 }),
        ...whisker(x(row[`low_${name}`]), x(row[`high_${name}`]), y + thick / 2));
    });
  });
  return picture;
}

function whisker(low, high, y) {
  return [svg("line", { class: "whisker", x1: low, x2: high, y1: y, y2: y }),
    ...[low, high].map((x) => svg("line", { class: "whisker", x1: x, x2: x, y1: y - 4, y2: y + 4 }))];
}

function table(machine, corrected) {
  const head = ["", "Counted", "Estimate (95 %)", ...(corrected ? ["With reviews"] : [])];
  return el("table.numbers", {},
    el("thead", {}, el("tr", {}, ...head.map((words) => el("th", { scope: "col" }, words)))),
    el("tbody", {}, ...CLASSES.map((name) => el("tr", {},
      el("th", { scope: "row" }, inWords(name)),
      el("td", {}, String(machine[`count_${name}`])),
      el("td", {}, shown(machine, name)),
      corrected ? el("td.corrected", {}, `${corrected[`count_${name}`]}: ${shown(corrected, name)}`) : null))));
}

function shown(row, name) {
  const [value, low, high] = ["estimate", "low", "high"].map((kind) => row[`${kind}_${name}`]);
  if (value === null || value === undefined) return "no white cell";
  return `${value.toFixed(1)} (${low.toFixed(1)}–${high.toFixed(1)})`;
}
