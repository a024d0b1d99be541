// Archives on their way to the endpoint. They live beside the views, which come and go.

import { bytes, el, fill, lastPart, note, say } from "./dom.js";
import { answerOf, newKey, persist } from "./requests.js";

const TYPES = [
  [/\.zip$/i, "application/zip"],
  [/\.tar$/i, "application/x-tar"],
  [/\.(tar\.gz|tgz)$/i, "application/gzip"],
];

const uploads = []; // sent one after the other
let busy = false;
let stop = new AbortController();

/** Whether a file is an archive by its name. */
export const isArchive = (file) => TYPES.some(([ending]) => ending.test(file.name));

/** All uploads of this page's life, as elements; `uploaded` events tell when one became a run. */
export const uploadList = el("ul.uploads", { "aria-label": "Uploads" });

/** Sends an archive; it becomes a run. Sending it again after a broken connection makes no second. */
export function startUpload(file) {
  const upload = { file, key: newKey(), line: el("li") };
  uploads.push(upload);
  uploadList.append(upload.line);
  show(upload, "waits");
  next();
}

/** Stops all uploads: who signs out leaves nothing behind. */
export function forgetUploads() {
  stop.abort();
  stop = new AbortController();
  uploads.length = 0;
  fill(uploadList);
}

async function next() {
  if (busy) return;
  const upload = uploads.shift();
  if (!upload) return;
  busy = true;
  const { file } = upload;
  const { signal } = stop;
  try {
    say(`Sending ${file.name}.`);
    const view = await persist(() => send(upload, signal), { signal, waiting: (seconds, error) =>
      show(upload, `${error.message} Going on in ${Math.ceil(seconds)} s.`) });
    upload.line.remove();
    say(`${file.name} is sent; its run has begun.`);
    uploadList.dispatchEvent(new CustomEvent("uploaded", { detail: view }));
  } catch (error) {
    if (signal.aborted) return;
    fill(upload.line, note("bad", el("strong", {}, file.name), ` was not taken: ${error.message} `,
      el("button", { type: "button", click: () => upload.line.remove() }, "Close")));
  } finally {
    busy = false;
    next();
  }
}

function show(upload, words, share = null) {
  fill(upload.line, el("span.name", {}, upload.file.name), el("span.small", {}, words),
    share === null ? null : el("progress", { max: 1, value: share, "aria-label": `Sending ${upload.file.name}` }));
}

function send(upload, signal) {
  const { file, key } = upload;
  const [, type] = TYPES.find(([ending]) => ending.test(file.name));
  return new Promise((done, fail) => {
    const request = new XMLHttpRequest(); // fetch does not tell how much has been sent
    request.open("POST", `/v1/archives?name=${encodeURIComponent(lastPart(file.name).slice(-200))}`);
    request.setRequestHeader("Content-Type", type);
    request.setRequestHeader("Idempotency-Key", key);
    request.upload.addEventListener("progress", (event) => {
      show(upload, `${bytes(event.loaded)} of ${bytes(file.size)}`, event.loaded / file.size);
    });
    request.addEventListener("load", () => {
      try {
        done(answerOf(request.status, request.responseText, request.getResponseHeader("retry-after")));
      } catch (error) {
        fail(error);
      }
    });
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.addEventListener("abort", () => fail(new Error("Stopped.")));
    request.addEventListener("error", () => {
      fail(Object.assign(new Error("The connection broke."), { broken: true }));
    });
    request.send(file);
  });
}
