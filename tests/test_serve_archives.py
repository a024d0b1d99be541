"""Archive runs through a real Ray Serve application: asked for over HTTP, scored by replicas."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow.parquet as pq
import pytest
from ray import serve

from bloodcells.synthetic import NORMAL, ImageFile, draw_slide, write_archive
from jobs.score import ScoreConfig, score
from serve.archive_app import archive_keeper
from serve.settings import Scale, ServeSettings
from serve.standing_back import groups_by_session
from tests.archive_ingress import Ingress

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(500)]

TOKEN = "a-token-for-the-tests-alone"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
PATIENCE_S = 180.0  # scorers take what other work on the machine leaves
NUM_IMAGES = 120
SHARD_SIZE = 3  # a forward pass has one size: more shards are more work
NUM_SHARDS = NUM_IMAGES // SHARD_SIZE


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the lab's archives are: drawn cells, each some times, so that a run takes seconds."""
    folder = tmp_path_factory.mktemp("lab")
    drawn = list(draw_slide(NORMAL, 60, seed=5))
    many = [
        ImageFile(name=f"{copy}-{image.name}", label=None, data=image.data)
        for copy in range(NUM_IMAGES // 60)
        for image in drawn
    ]
    write_archive(folder / "slide-1.tar", many, "tar")
    write_archive(folder / "slide-2.zip", drawn[:20], "zip")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def client(ray_cluster: None, lab: Path, root: Path) -> Iterator[httpx.Client]:
    (root / "tokens").write_text(f"ann archives,review {TOKEN}\n")
    settings = ServeSettings(
        root=str(root),
        read=(str(lab),),
        write=(str(lab / "out"),),
        tokens_file=str(root / "tokens"),
        archives=Scale(
            min_replicas=0,
            max_replicas=2,
            num_cpus=0.4,
            upscale_delay_s=0.2,
            downscale_delay_s=3,
        ),
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    ingress = serve.deployment(ray_actor_options={"num_cpus": 0.1})(Ingress)
    app = ingress.bind(settings.model_dump(mode="json"), archive_keeper(settings))
    serve.run(app, name="archives", route_prefix="/")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=HEADERS, timeout=60) as client:
        yield client
    serve.shutdown()


def ask(client: httpx.Client, store: Path | str, **more: Any) -> dict[str, Any]:
    headers = more.pop("headers", {})
    answer = client.post("/v1/archives", json={"store": str(store), **more}, headers=headers)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/v1/archives/{found['id']}"
    return found


def wait_for(
    client: httpx.Client, archive_id: str, met: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found: dict[str, Any] = client.get(f"/v1/archives/{archive_id}").json()
        if met(found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def is_over(view: dict[str, Any]) -> bool:
    return view["status"] not in ("queued", "planning", "running")


def finished(client: httpx.Client, archive_id: str) -> dict[str, Any]:
    view = wait_for(client, archive_id, is_over)
    assert view["status"] == "complete", view
    return view


def parts(run: Path) -> dict[str, bytes]:
    return {
        f"{table}/{part.name}": part.read_bytes()
        for table in ("scores", "quarantine")
        for part in sorted((run / table).iterdir())
    }


@pytest.fixture(scope="module")
def first(client: httpx.Client, lab: Path, expected: Path) -> dict[str, Any]:
    """A run, just begun; what it is compared with is there already."""
    return ask(client, lab / "slide-1.tar", shard_size=SHARD_SIZE)


@pytest.fixture(scope="module")
def expected(ray_cluster: None, lab: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same archive, scored by the command."""
    run = tmp_path_factory.mktemp("expected") / "run"
    store = (str(lab / "slide-1.tar"),)
    score(ScoreConfig(store=store, out=str(run), shard_size=SHARD_SIZE, scorers="1"))
    return run


def is_mid_run(view: dict[str, Any]) -> bool:
    return 5 <= view["counts"]["shards_done"] < NUM_SHARDS


def processes(deployment: str) -> list[psutil.Process]:
    """Return a deployment's replicas, among what these tests started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if f":{deployment}" in " ".join(process.cmdline()):
                found.append(process)
    return found


def num_published(root: Path, view: dict[str, Any]) -> int:
    return len(list((root / "runs" / view["id"] / "scores").glob("part-*")))


def assert_as_expected(client: httpx.Client, view: dict[str, Any], root: Path, run: Path) -> None:
    assert view["counts"] == {
        "listed": NUM_IMAGES,
        "scored": NUM_IMAGES,
        "quarantined": 0,
        "shards": NUM_SHARDS,
        "shards_done": NUM_SHARDS,
    }
    ours = root / "runs" / view["id"]
    assert parts(ours) == parts(run)
    assert pq.read_table(ours / "slides.parquet").equals(pq.read_table(run / "slides.parquet"))
    assert not (ours / "lease.json").exists()


def test_a_run_equals_that_of_the_command(
    client: httpx.Client, root: Path, expected: Path, first: dict[str, Any]
) -> None:
    view = first
    assert view["status"] in ("queued", "planning", "running")
    seen = wait_for(client, view["id"], is_mid_run)
    assert [row["slide_id"] for row in seen["slides"]] == ["slide-1"]
    assert 0 < seen["slides"][0]["num_images"] <= NUM_IMAGES
    events = client.get(f"/v1/archives/{view['id']}/events").text.strip().split("\n\n")
    assert {event.splitlines()[0] for event in events[:-1]} == {"event: progress"}
    assert events[-1].startswith("event: end")
    assert json.loads(events[-1].partition("data: ")[2])["status"] == "complete"
    done = finished(client, view["id"])
    assert done["images_per_second"] > 0
    assert_as_expected(client, done, root, expected)
    (slide,) = done["slides"]
    assert slide == pq.read_table(expected / "slides.parquet").to_pylist()[0]


def test_cancelled_and_resumed(client: httpx.Client, lab: Path, root: Path, expected: Path) -> None:
    view = ask(client, lab / "slide-1.tar", shard_size=SHARD_SIZE)
    wait_for(client, view["id"], is_mid_run)
    answer = client.post(f"/v1/archives/{view['id']}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    lease = root / "runs" / view["id"] / "lease.json"
    deadline = time.monotonic() + PATIENCE_S
    while lease.exists():
        assert time.monotonic() < deadline, "the run is not let go"
        time.sleep(0.1)
    left = num_published(root, view)
    assert 5 <= left < NUM_SHARDS
    wait_for(client, view["id"], lambda view: view["counts"]["shards_done"] == left)
    time.sleep(2.5)
    assert num_published(root, view) == left
    assert client.get(f"/v1/archives/{view['id']}").json()["status"] == "cancelled"
    assert client.post(f"/v1/archives/{view['id']}/resume").status_code == 202
    assert_as_expected(client, finished(client, view["id"]), root, expected)


def test_killed_in_mid_run_nothing_is_lost(
    client: httpx.Client, lab: Path, root: Path, expected: Path
) -> None:
    view = ask(client, lab / "slide-1.tar", shard_size=SHARD_SIZE)
    wait_for(client, view["id"], is_mid_run)
    for deployment in ("ArchiveScorer", "ArchiveKeeper"):
        victims = processes(deployment)
        assert victims
        victims[0].kill()
    assert num_published(root, view) < NUM_SHARDS, "the kills must come amid the work"
    assert_as_expected(client, finished(client, view["id"]), root, expected)


def test_a_run_that_a_dead_cluster_left_is_taken_up(
    client: httpx.Client, root: Path, expected: Path, first: dict[str, Any]
) -> None:
    view = first
    finished(client, view["id"])
    run = root / "runs" / view["id"]
    for name in ("slides.parquet", "report.html"):
        (run / name).unlink()
    for part in sorted((run / "scores").iterdir())[:7]:
        part.unlink()
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "running"}))
    lease = {"token": "of-the-dead", "host": "elsewhere", "pid": 1, "heartbeat": time.time() - 90}
    (run / "lease.json").write_text(json.dumps(lease))
    (root / "notes" / f"{view['id']}.json").unlink()
    assert client.get(f"/v1/archives/{view['id']}").json()["status"] in ("queued", "running")
    assert_as_expected(client, finished(client, view["id"]), root, expected)


def test_an_uploaded_archive(client: httpx.Client, lab: Path, root: Path) -> None:
    body = (lab / "slide-2.zip").read_bytes()
    headers = {"Content-Type": "application/zip", "Idempotency-Key": "once"}

    def send() -> httpx.Response:
        return client.post(
            "/v1/archives", params={"name": "../slide 2.zip"}, content=body, headers=headers
        )

    view = send().json()
    assert send().json()["id"] == view["id"]
    done = finished(client, view["id"])
    assert done["counts"]["scored"] == 20
    assert done["store"] == ["../slide 2.zip"]
    assert [row["slide_id"] for row in done["slides"]] == ["slide 2"]
    (kept,) = (root / "uploads" / view["id"]).iterdir()
    assert kept.read_bytes() == body
    assert not list((root / "uploads").glob(".tmp-*"))

    files = client.get(f"/v1/archives/{view['id']}/files").json()["files"]
    names = {file["name"] for file in files}
    assert {"run.json", "report.html", "slides.parquet"} < names
    for file in files:
        answer = client.get(file["url"])
        assert len(answer.content) == file["bytes"]
        is_report = file["name"] == "report.html"
        assert ("sandbox" in answer.headers["content-security-policy"]) == is_report
    for name in ("lease.json", "plan", "..%2f..%2ftokens", "scores/.tmp-1", "%2e%2e/tokens"):
        target = f"/v1/archives/{view['id']}/files/{name}".encode()
        request = client.build_request("GET", "/")
        request.url = request.url.copy_with(raw_path=target)  # or it would be tidied up here
        assert client.send(request).status_code == 404, name


def test_what_cannot_work_says_so(client: httpx.Client, lab: Path, root: Path) -> None:
    (lab / "empty").mkdir()
    (lab / "empty" / "notes.txt").write_text("no image")
    view = wait_for(client, ask(client, lab / "empty")["id"], is_over)
    assert view["status"] == "failed"
    assert "no image found" in view["message"]
    write_archive(lab / "empty" / "late.tar", list(draw_slide(NORMAL, 3, seed=1)), "tar")
    client.post(f"/v1/archives/{view['id']}/resume")
    assert finished(client, view["id"])["counts"]["scored"] == 3

    view = wait_for(client, ask(client, lab / "nowhere")["id"], is_over)
    assert (view["status"], str(root) in view["message"]) == ("failed", False)


def test_too_much_quarantine_waits_for_a_person(client: httpx.Client, lab: Path) -> None:
    bad = [ImageFile(name=f"{k}.jpg", label=None, data=b"no image") for k in range(4)]
    write_archive(lab / "bad.tar", [*draw_slide(NORMAL, 4, seed=2), *bad], "tar")
    view = wait_for(client, ask(client, lab / "bad.tar")["id"], is_over)
    assert view["status"] == "incomplete"
    assert "resume the run with a higher max_quarantine" in view["message"]
    client.post(f"/v1/archives/{view['id']}/resume", params={"max_quarantine": 0.5})
    done = finished(client, view["id"])
    assert (done["counts"]["scored"], done["counts"]["quarantined"]) == (4, 4)


def test_scorers_go_when_there_is_nothing_to_do_and_come_back(
    client: httpx.Client, lab: Path
) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while processes("ArchiveScorer"):
        assert time.monotonic() < deadline, "the scorers stay"
        time.sleep(0.2)
    view = ask(client, lab / "slide-2.zip", out=str(lab / "out" / "run"))
    assert finished(client, view["id"])["counts"]["scored"] == 20
    assert pq.read_table(lab / "out" / "run" / "slides.parquet").num_rows == 1
    again = client.post(
        "/v1/archives", json={"store": str(lab / "slide-2.zip"), "out": str(lab / "out" / "run")}
    )
    assert (again.status_code, again.json()["error"]["code"]) == (409, "out_in_use")


def test_scoring_threads_have_the_lowest_priority(client: httpx.Client, lab: Path) -> None:
    finished(client, ask(client, lab / "slide-2.zip")["id"])
    scorers = processes("ArchiveScorer")  # one that had no shard yet has no such thread
    threads = [thread.id for scorer in scorers for thread in scorer.threads()]
    assert os.SCHED_IDLE in [os.sched_getscheduler(thread) for thread in threads]
    for scorer in scorers:
        assert os.sched_getscheduler(scorer.pid) == os.SCHED_OTHER, "the event loop is not slowed"


@pytest.mark.skipif(not groups_by_session(), reason="this kernel does not group by session")
def test_scorers_are_a_session_of_the_lowest_weight(client: httpx.Client, lab: Path) -> None:
    """A thread's priority says nothing to the processes of another session, such as a client's."""
    finished(client, ask(client, lab / "slide-2.zip")["id"])
    scorers = processes("ArchiveScorer")
    assert scorers
    for scorer in scorers:
        assert os.getsid(scorer.pid) == scorer.pid
        assert Path(f"/proc/{scorer.pid}/autogroup").read_text().strip().endswith("nice 19")
    for endpoint in processes("Endpoint"):
        assert Path(f"/proc/{endpoint.pid}/autogroup").read_text().strip().endswith("nice 0")
