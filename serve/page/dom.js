// Elements made from text alone. Nothing here, and nothing on the page, ever parses markup:
// names of files and slides come from strangers, and stay text.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Makes an element.
 * @param {string} name tag, with classes after dots: "p.note.warn".
 * @param {object} given attributes; functions are listeners ("click"), booleans are properties.
 * @param {...(Node|string|null)} children strings become text.
 */
export function el(name, given = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const made = document.createElement(tag);
  if (classes.length) made.className = classes.join(" ");
  return furnished(made, given, children);
}

/** The same for a part of an SVG picture. */
export function svg(tag, given = {}, ...children) {
  return furnished(document.createElementNS(SVG, tag), given, children);
}

function furnished(made, given, children) {
  for (const [key, value] of Object.entries(given)) {
    if (value === null || value === undefined) continue;
    if (typeof value === "function") made.addEventListener(key, value);
    else if (typeof value === "boolean" && key in made) made[key] = value;
    else made.setAttribute(key, String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Puts children in place of what an element holds. */
export function fill(parent, ...children) {
  parent.replaceChildren(...children.filter((child) => child !== null && child !== undefined));
  return parent;
}

let saidAt = 0;

/** Tells people who listen to the page rather than see it; `rarely` at most every ten seconds. */
export function say(text, { rarely = false } = {}) {
  const now = Date.now();
  if (rarely && now - saidAt < 10_000) return;
  saidAt = now;
  document.getElementById("said").textContent = text;
}

/** A note that stands on the page. Kind: "good", "warn" or "bad". */
export function note(kind, ...children) {
  return el(`p.note.${kind}`, { role: kind === "bad" ? "alert" : "status" }, ...children);
}

/** An address of this server as the server gave it, or null: no other host is ever asked. */
export function own(address) {
  try {
    const url = new URL(address, location.origin);
    return url.origin === location.origin ? url.pathname + url.search : null;
  } catch {
    return null;
  }
}

export const number = (value) => value.toLocaleString("en-GB");

export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;

export const plural = (count, one, many = `${one}s`) =>
  `${number(count)} ${count === 1 ? one : many}`;

export function bytes(count) {
  for (const [size, unit] of [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
    if (count >= size) return `${(count / size).toFixed(1)} ${unit}`;
  }
  return plural(count, "byte");
}

export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.round((whole % 3600) / 60)} min`;
}

export function moment(iso) {
  const at = new Date(iso);
  if (Number.isNaN(at.getTime())) return String(iso);
  return at.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}

/** The last part of a path or URI. */
export const lastPart = (uri) => uri.replace(/\/+$/, "").split(/[/#]/).pop() || uri;
