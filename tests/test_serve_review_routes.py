"""Review over HTTP: a run of drawn cells, two people, and those who mean no good."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from starlette.testclient import TestClient

from bloodcells import storage
from bloodcells.bundle import Calibration, ModelBundle, shipped_bundle_uri
from bloodcells.cells import CLASSES
from bloodcells.loading import load_shard
from bloodcells.publish import plan_bytes
from bloodcells.records import SCORES_SCHEMA, Shard
from bloodcells.reviews import VERDICTS
from bloodcells.scoring import Scorer, score_loaded
from bloodcells.slides import write_slides
from bloodcells.stores import open_store, plan_source
from bloodcells.synthetic import BALANCED, draw_slide
from bloodcells.synthetic.archives import write_archive
from bloodcells.verdicts import publish_scored
from serve.api import create_api
from serve.doors import Doors, Person, Token
from serve.errors import ApiError
from serve.review_routes import Verdict, review_router

NUM_CELLS = 12
TOKENS = {"anna": ("review",), "ben": ("review",), "cara": ("archives",), "dora": ("classify",)}


@dataclass(frozen=True, kw_only=True)
class Made:
    """A finished run."""

    uri: str
    calibration: Calibration
    cells: list[dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run of one tar and one npz; of each store's six cells three wait, the last is alien."""
    folder = tmp_path_factory.mktemp("made")
    drawn = list(draw_slide(BALANCED, NUM_CELLS, seed=5))
    (folder / "store").mkdir()
    write_archive(folder / "store" / "slide-1.tar", drawn[:6], "tar")
    write_archive(folder / "store" / "slide-2.npz", drawn[6:], "npz")
    run_uri, bundle = str(folder / "run"), ModelBundle.load(shipped_bundle_uri())
    scorer, shards, rows = Scorer(bundle, num_threads=1), [], []
    for source in open_store(str(folder / "store")).sources():
        shards += [item for item in plan_source(source, shard_size=4) if isinstance(item, Shard)]
    storage.put(storage.join(run_uri, "plan", "part-0.parquet"), plan_bytes(shards))
    for shard in shards:
        loaded = load_shard(shard, bundle.preprocess)
        scores = shaded(score_loaded(loaded, scorer))
        publish_scored(loaded, scores, run_uri)
        rows += scores.to_pylist()
    write_slides(run_uri, bundle.calibration)
    assert len(rows) == NUM_CELLS
    return Made(uri=run_uri, calibration=bundle.calibration, cells=rows)


def shaded(scores: pa.Table) -> pa.Table:
    """Give a shard's cells known confidences, every other one for a person, the first alien."""
    numbers = np.arange(len(scores))
    columns = {
        "confidence": np.float32(0.9) - numbers.astype(np.float32) / 10,
        "needs_review": numbers % 2 == 1,
        "out_of_domain": numbers == 0,
    }
    return pa.table(
        {name: columns.get(name, scores[name]) for name in scores.column_names},
        schema=SCORES_SCHEMA,
    )


@pytest.fixture
def run(made: Made, tmp_path: Path) -> Made:
    shutil.copytree(made.uri, tmp_path / "run")
    return replace(made, uri=str(tmp_path / "run"))


@pytest.fixture
def client(run: Made) -> Iterator[TestClient]:
    with client_of(run, run.calibration) as client:
        yield client


def client_of(run: Made, calibration: Calibration | None) -> TestClient:
    def find_run(run_id: str) -> str:
        if run_id != "r1":
            raise ApiError(404, "no_such_archive", "There is no such archive run.")
        return run.uri

    people = [
        Token(person=Person(name=name, roles=frozenset(roles)), digest=digest_of(name))
        for name, roles in TOKENS.items()
    ]
    doors = Doors(people)
    api = create_api([review_router(find_run, doors, lambda _: calibration)], doors)
    return TestClient(api, headers=as_person("anna"))


def digest_of(name: str) -> bytes:
    return hashlib.sha256(f"token-of-{name}".encode()).digest()


def as_person(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer token-of-{name}"}


def say(client: TestClient, uri: str, verdict: str, revision: int = 0, by: str = "anna") -> Any:
    body = {"image_uri": uri, "class": verdict, "revision": revision}
    return client.post("/v1/archives/r1/reviews", json=body, headers=as_person(by))


def queue(client: TestClient, **params: Any) -> dict[str, Any]:
    response = client.get("/v1/archives/r1/review", params=params)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def refusal(response: Any) -> tuple[int, str]:
    assert "Traceback" not in response.text and "/run/" not in response.text
    return response.status_code, response.json()["error"]["code"]


def test_the_words_are_the_librarys() -> None:
    assert get_args(Verdict) == VERDICTS


def test_the_queue_is_in_order(client: TestClient, run: Made) -> None:
    whole = queue(client)
    waiting = [cell for cell in run.cells if cell["needs_review"] or cell["out_of_domain"]]
    assert whole["total"] == len(waiting) == len(whole["cells"])
    order = [(cell["confidence"], cell["image_uri"]) for cell in whole["cells"]]
    assert order == sorted((cell["confidence"], cell["image_uri"]) for cell in waiting)
    first = whole["cells"][0]
    (row,) = [cell for cell in run.cells if cell["image_uri"] == first["image_uri"]]
    assert first["probabilities"] == {name: row[f"prob_{name}"] for name in CLASSES}
    assert (first["revision"], first["reviewed_class"], first["reviewed_by"]) == (0, None, None)
    pages = [queue(client, offset=at, limit=2)["cells"] for at in range(0, whole["total"], 2)]
    assert [cell for page in pages for cell in page] == whole["cells"]
    assert queue(client, offset=100)["cells"] == []
    assert queue(client, all="true")["total"] == NUM_CELLS
    one = queue(client, slide="slide-1", all="true")
    assert one["total"] == 6 and {cell["slide_id"] for cell in one["cells"]} == {"slide-1"}
    assert queue(client, slide="no such\0slide")["total"] == 0


def test_a_review_goes_to_the_end_and_stands_beside_the_machine(
    client: TestClient, run: Made
) -> None:
    cell = queue(client)["cells"][0]
    uri = cell["image_uri"]
    response = say(client, uri, "not_a_cell")
    assert response.status_code == 201
    added = response.json()
    assert added.pop("at").endswith("+00:00")
    assert added == {
        "image_uri": uri,
        "revision": 1,
        "class": "not_a_cell",
        "before": cell["predicted_class"],
        "by": "anna",
    }
    last = queue(client)["cells"][-1]
    assert (last["image_uri"], last["revision"]) == (uri, 1)
    assert (last["reviewed_class"], last["reviewed_by"]) == ("not_a_cell", "anna")

    one, two = client.get("/v1/archives/r1/slides").json()["slides"]
    touched, other = (one, two) if one["slide_id"] == cell["slide_id"] else (two, one)
    assert (touched["num_reviewed"], other["num_reviewed"]) == (1, 0)
    assert other["corrected"] is None
    counts = {
        kind: sum(touched[kind][f"count_{name}"] for name in CLASSES)
        for kind in ("machine", "corrected")
    }
    assert counts["corrected"] == counts["machine"] - (not cell["out_of_domain"])
    assert touched["machine"]["num_review"] >= touched["corrected"]["num_review"]


def test_without_the_bundle_nothing_is_corrected(run: Made) -> None:
    with client_of(run, None) as client:
        say(client, run.cells[1]["image_uri"], "basophil")
        body = client.get("/v1/archives/r1/slides").json()
        assert [slide["corrected"] for slide in body["slides"]] == [None, None]
        assert sum(slide["num_reviewed"] for slide in body["slides"]) == 1
        Path(run.uri, "slides.parquet").unlink()
        assert refusal(client.get("/v1/archives/r1/slides")) == (409, "no_slides_yet")
    with client_of(run, run.calibration) as client:
        assert client.get("/v1/archives/r1/slides").json()["total"] == 2


def test_two_people_correcting_one_cell(client: TestClient, run: Made) -> None:
    uri = run.cells[3]["image_uri"]
    said = {"anna": "basophil", "ben": "monocyte"}
    with ThreadPoolExecutor(2) as pool:
        answers = dict(
            zip(said, pool.map(lambda by: say(client, uri, said[by], by=by), said), strict=True)
        )
    assert sorted(answer.status_code for answer in answers.values()) == [201, 409]
    (winner,) = [by for by, answer in answers.items() if answer.status_code == 201]
    (loser,) = set(said) - {winner}
    assert refusal(answers[loser]) == (409, "reviewed_meanwhile")
    assert answers[loser].json()["current"] == answers[winner].json()
    again = say(client, uri, said[winner], by=winner)  # its answer was lost on the way
    assert again.status_code == 201 and again.json() == answers[winner].json()
    then = say(client, uri, said[loser], revision=1, by=loser)
    assert (then.status_code, then.json()["before"]) == (201, said[winner])
    early = say(client, run.cells[5]["image_uri"], "basophil", revision=3)
    assert refusal(early) == (409, "reviewed_meanwhile") and early.json()["current"] is None


def test_every_cell_has_a_picture(client: TestClient, run: Made) -> None:
    for cell in queue(client, all="true")["cells"]:
        listed = client.get(cell["image_url"])
        named = client.get("/v1/archives/r1/image", params={"uri": cell["image_uri"]})
        assert listed.content == named.content
        assert listed.headers["content-type"] == "image/png"
        picture = Image.open(io.BytesIO(listed.content))
        assert picture.format == "PNG" and max(picture.size) <= 360
        (row,) = [c for c in run.cells if c["image_uri"] == cell["image_uri"]]
        assert picture.size == (row["width_px"], row["height_px"]) or max(picture.size) == 360


def test_a_picture_of_what_is_not_there(client: TestClient, run: Made) -> None:
    def ask(uri: str, **more: str) -> tuple[int, str]:
        return refusal(client.get("/v1/archives/r1/image", params={"uri": uri, **more}))

    known = run.cells[0]["image_uri"]
    for uri in ("/etc/passwd", "file:///etc/passwd", f"{known}x", "../x", "x\0y", "http://[::1]/"):
        assert ask(uri) == (404, "no_such_cell"), uri
    assert ask(known, shard="0" * 16) == (404, "no_such_cell")
    assert ask(known, shard="../../x")[0] == 422
    assert refusal(client.get(f"/v1/archives/r2/image?uri={quote(known)}"))[0] == 404
    part = Path(run.uri, "scores", f"part-{run.cells[0]['shard_id']}.parquet")
    part.unlink()
    assert ask(known) == (404, "not_scored_yet")
    part.write_bytes(b"not parquet")
    assert ask(known) == (422, "run_damaged")


def test_an_image_that_was_replaced_is_not_shown(client: TestClient, run: Made) -> None:
    """The person would judge another cell than the machine did."""
    cell = next(c for c in run.cells if ".tar#" in c["image_uri"])
    tar = Path(cell["image_uri"].partition("#")[0])
    whole = tar.read_bytes()
    try:
        tar.write_bytes(whole.replace(b"\xff\xda", b"\xff\xdb"))
        answer = client.get("/v1/archives/r1/image", params={"uri": cell["image_uri"]})
        assert refusal(answer) == (422, "image_changed")
        tar.unlink()
        answer = client.get("/v1/archives/r1/image", params={"uri": cell["image_uri"]})
        assert refusal(answer) == (422, "missing_object")
    finally:
        tar.write_bytes(whole)


def test_the_doors(client: TestClient, run: Made) -> None:
    uri = run.cells[0]["image_uri"]
    for path in ("slides", "review", f"image?uri={quote(uri, safe='')}"):
        for name, status in (("anna", 200), ("cara", 200), ("dora", 403)):
            answer = client.get(f"/v1/archives/r1/{path}", headers=as_person(name))
            assert answer.status_code == status, (path, name)
        unknown = client.get(f"/v1/archives/r1/{path}", headers=as_person("eve"))
        assert unknown.status_code == 401
    for name in ("cara", "dora"):
        assert say(client, uri, "basophil", by=name).status_code == 403
    assert not Path(run.uri, "reviews").exists()


@pytest.mark.parametrize(
    "body",
    [
        b'{"image_uri": "\\ud800", "class": "basophil", "revision": 0}',
        b'{"image_uri": "a\\u0000b", "class": "basophil", "revision": 0}',
        b'{"image_uri": "x", "class": "blast", "revision": 0}',
        b'{"image_uri": "x", "class": "basophil", "revision": -1}',
        b'{"image_uri": "x", "class": "basophil", "revision": 1e999}',
        b'{"image_uri": "x", "class": "basophil", "revision": 99999999999999999999}',
        b'{"image_uri": "x", "class": "basophil", "revision": true}',
        b'{"image_uri": "x", "class": "basophil", "revision": 0, "by": "eve"}',
        b'{"image_uri": "", "class": "basophil", "revision": 0}',
        b'{"image_uri": "' + b"x" * 9000 + b'", "class": "basophil", "revision": 0}',
        b"\xff",
        b"[]",
        b"",
    ],
    ids=range(13),
)
def test_bodies_that_mean_no_good(client: TestClient, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/archives/r1/reviews", content=body, headers=headers)
    assert 400 <= answer.status_code < 500, answer.text


@pytest.mark.parametrize(
    "path",
    [
        "review?offset=-1",
        "review?offset=99999999999999999999999",
        "review?limit=0",
        "review?limit=100000",
        "review?slide=" + "x" * 9000,
        "slides?offset=1e9",
        "slides?limit=1001",
        "image",
        "image?uri=",
        "image?uri=%ff%fe",
        "image?uri=%00",
        "image?uri=%ed%a0%80",
    ],
)
def test_queries_that_mean_no_good(client: TestClient, path: str) -> None:
    answer = client.get(f"/v1/archives/r1/{path}")
    assert 400 <= answer.status_code < 500, answer.text


def test_the_queue_follows_the_run(client: TestClient, run: Made) -> None:
    """A part that comes later is seen, and one that is gone is forgotten."""
    total = queue(client)["total"]
    parts = sorted(Path(run.uri, "scores").iterdir())
    data = parts[0].read_bytes()
    parts[0].unlink()
    fewer = queue(client)["total"]
    assert fewer < total
    parts[0].write_bytes(data)
    assert queue(client)["total"] == total
