// All archive runs: start one, watch those that go on.

import { bytes, el, fill, note } from "./dom.js";
import { ask, newKey } from "./requests.js";
import { RunLine, watch } from "./progress.js";
import { dropBox } from "./classify.js";
import { isArchive, startUpload, uploadList } from "./upload.js";

const SHOWN = 50;

/** Shows the list; returns what is to be done when it is left. */
export function showArchives(main, { may }) {
  main.dataset.page = "archives";
  const told = el("div");
  const list = el("ul.runs", { "aria-label": "Archive runs" });
  const older = el("button", { type: "button", hidden: true, click: more }, "Older runs");
  const stops = [];
  let oldest = null;
  fill(main,
    el("h1", { tabindex: "-1" }, "Archive runs"),
    may("archives") ? starting(told) : null,
    told, uploadList, list, older);

  const uploaded = (event) => add(event.detail, true);
  uploadList.addEventListener("uploaded", uploaded);
  more();
  return () => {
    uploadList.removeEventListener("uploaded", uploaded);
    for (const stop of stops) stop();
  };

  function add(view, first) {
    const line = new RunLine(view, { may });
    if (first) list.prepend(line.element);
    else list.append(line.element);
    stops.push(watch(view, (now) => line.show(now)));
  }

  async function more() {
    try {
      const before = oldest ? `&before=${oldest}` : "";
      const { archives } = await ask(`/v1/archives?limit=${SHOWN}${before}`);
      for (const view of archives) add(view, false);
      if (archives.length) oldest = archives[archives.length - 1].id;
      else if (!oldest) fill(told, note("plain", "No archive has been scored yet."));
      older.hidden = archives.length < SHOWN;
    } catch (error) {
      fill(told, note("bad", error.message));
    }
  }

  function starting() {
    const store = el("input", { id: "store", required: true, maxlength: 1024, spellcheck: "false",
      placeholder: "s3://lab/slides/2026-11, or /mnt/slides/17.tar" });
    const out = el("input", { id: "out", maxlength: 1024, spellcheck: "false",
      placeholder: "left empty, the endpoint keeps it" });
    const form = el("form.start", { submit },
      el("label", { for: "store" }, "Store to score: a folder, archive or table"), store,
      el("label", { for: "out" }, "Run folder"), out,
      el("button.main", { type: "submit" }, "Score it"));
    return el("div.starting", {},
      dropBox({
        label: "Drop an archive of one slide here, or choose one",
        hint: ".zip, .tar or .tar.gz; its name becomes the slide's.",
        accept: ".zip,.tar,.gz,.tgz",
        taken,
      }), form);

    function taken(files) {
      const others = files.filter((file) => !isArchive(file));
      fill(told, others.length
        ? note("warn", `${others[0].name} (${bytes(others[0].size)}) is no archive; single images go to Cells.`)
        : null);
      for (const file of files.filter(isArchive)) startUpload(file);
    }

    async function submit(event) {
      event.preventDefault();
      fill(told);
      const asked = { store: store.value.trim() };
      if (out.value.trim()) asked.out = out.value.trim();
      try {
        const headers = { "Idempotency-Key": newKey() };
        add(await ask("/v1/archives", { json: asked, headers }), true);
        store.value = out.value = "";
      } catch (error) {
        fill(told, note("bad", error.message));
      }
    }
  }
}
