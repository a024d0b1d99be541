// Requests to the endpoint: its errors, its "wait", and broken connections.

const MOST_TRIES = 30; // while it says "wait"
const MOST_BROKEN = 6; // connections that break
const LONGEST_WAIT_S = 60;

/** What the endpoint said instead of an answer. */
export class Refusal extends Error {
  constructor(status, body) {
    const told = (body && body.error) || {};
    super(told.message || `The endpoint answered with status ${status}.`);
    this.status = status;
    this.code = told.code || "unknown";
    this.requestId = told.request_id || "";
    this.body = body || {};
  }
}

/** A key that makes sending something twice the same as sending it once. */
export function newKey() {
  const drawn = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(drawn, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Asks, and goes on asking while the endpoint says "wait" or the connection breaks.
 * @param {string} path of this server.
 * @param {object} given for fetch; `json` becomes the body; `waiting(seconds)` is told of a wait;
 *   `patient: false` gives up at the first refusal.
 * @returns the answer's JSON, or null where it has none.
 */
export async function ask(path, { json, waiting, patient = true, headers = {}, ...given } = {}) {
  const init = { credentials: "same-origin", headers: { ...headers }, ...given };
  if (json !== undefined) {
    init.method = init.method || "POST";
    init.body = JSON.stringify(json);
    init.headers["Content-Type"] = "application/json";
  }
  return persist(() => once(path, init), { waiting, patient, signal: given.signal });
}

/** Does `attempt` again where it is refused for the time being; see ask. */
export async function persist(attempt, { waiting, patient = true, signal } = {}) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await attempt();
    } catch (error) {
      const most = error.broken ? MOST_BROKEN : MOST_TRIES;
      if ((signal && signal.aborted) || !patient || tries >= most || !passes(error)) throw error;
      const seconds = Math.min(error.retryAfter || Math.min(2 ** (tries - 1), 8), LONGEST_WAIT_S);
      if (waiting) waiting(seconds, error);
      await pause(seconds, signal);
    }
  }
}

async function once(path, init) {
  let response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw Object.assign(new Error("The endpoint cannot be reached."), { broken: true });
  }
  return answerOf(response.status, await response.text(), response.headers.get("retry-after"));
}

/** Returns an answer's JSON; throws a Refusal where it is none. */
export function answerOf(status, text, retryAfter) {
  let body = null;
  try {
    body = text ? JSON.parse(text) : null;
  } catch {
    body = null;
  }
  if (status >= 200 && status < 300) return body;
  const refusal = new Refusal(status, body);
  if (retryAfter) refusal.retryAfter = Number.parseFloat(retryAfter) || null;
  if (status === 401) document.dispatchEvent(new CustomEvent("signed-out"));
  throw refusal;
}

function passes(error) {
  return error.broken || [502, 503, 504].includes(error.status);
}

function pause(seconds, signal) {
  return new Promise((done, fail) => {
    const timer = setTimeout(done, 1000 * seconds);
    if (!signal) return;
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      fail(signal.reason);
    }, { once: true });
  });
}
