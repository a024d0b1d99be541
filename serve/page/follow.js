// A run as it goes on: by server-sent events, and where those do not come by asking now and then.

import { ask } from "./requests.js";

const ASK_EVERY_MS = 5000;

export const OPEN = ["queued", "planning", "running"];

/**
 * Tells `changed(view)` of a run until it ends or the returned function is called.
 * Nothing is asked while nobody sees the page: a browser has few connections to one server.
 */
export function follow(id, changed) {
  const path = `/v1/archives/${encodeURIComponent(id)}`;
  let events = null;
  let timer = null;
  let over = false;
  const watch = () => (document.hidden ? close() : open());
  document.addEventListener("visibilitychange", watch);
  watch();
  return stop;

  function stop() {
    over = true;
    close();
    document.removeEventListener("visibilitychange", watch);
  }

  function close() {
    if (events) events.close();
    clearTimeout(timer);
    events = timer = null;
  }

  function open() {
    if (over || events || timer) return;
    events = new EventSource(`${path}/events`);
    events.addEventListener("progress", (event) => tell(JSON.parse(event.data)));
    events.addEventListener("end", (event) => {
      stop();
      if (event.data) tell(JSON.parse(event.data));
    });
    events.addEventListener("error", () => {
      if (!events || events.readyState !== EventSource.CLOSED) return; // it tries again by itself
      close();
      timer = setTimeout(poll, ASK_EVERY_MS);
    });
  }

  async function poll() {
    timer = null;
    try {
      tell(await ask(path, { patient: false }));
    } catch (error) {
      if (error.status === 401 || error.status === 404) stop();
    }
    open();
  }

  function tell(view) {
    changed(view);
    if (!OPEN.includes(view.status)) stop();
  }
}
