"""Archive runs through a real Ray Serve application: asked for over HTTP, scored by replicas."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from ray import serve
from starlette.types import ASGIApp

from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.synthetic import NORMAL, ImageFile, draw_slide, write_archive
from jobs.score import ScoreConfig, score
from serve.api import create_api
from serve.archive_app import archive_keeper
from serve.archive_desk import ArchiveDesk
from serve.archive_routes import archive_router
from serve.doors import Doors, read_tokens
from serve.settings import Scale, ServeSettings

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(240)]

TOKEN = "a-token-for-the-tests-alone"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
PATIENCE_S = 60.0


@serve.ingress()
class Ingress:
    """The endpoint, less its single cells."""

    def __init__(self, settings: dict[str, Any], keeper: Any) -> None:
        self.settings = ServeSettings(**settings)
        self.doors = Doors(read_tokens(self.settings.tokens_file))
        self.bundle = ModelBundle.load(shipped_bundle_uri())
        self.keeper = keeper

    def __serve_build_asgi_app__(self) -> ASGIApp:
        async def poke() -> None:
            await self.keeper.poke.remote()

        desk = ArchiveDesk(self.settings, self.bundle, poke)
        return create_api([archive_router(desk, self.doors)], self.doors)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the lab's archives are: one folder of 120 drawn cells, in shards of 4."""
    folder = tmp_path_factory.mktemp("lab")
    write_archive(folder / "slide-1.tar", images(), "tar")
    return folder


def images(count: int = 120) -> list[ImageFile]:
    return list(draw_slide(NORMAL, count, seed=5))


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
    port = 18473
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
        time.sleep(0.05)


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
def expected(ray_cluster: None, lab: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same archive, scored by the command."""
    run = tmp_path_factory.mktemp("expected") / "run"
    store = (str(lab / "slide-1.tar"),)
    score(ScoreConfig(store=store, out=str(run), shard_size=4, scorers="1"))
    return run


def test_a_run_equals_that_of_the_command(
    client: httpx.Client, lab: Path, root: Path, expected: Path
) -> None:
    view = ask(client, lab / "slide-1.tar", shard_size=4)
    assert view["status"] in ("queued", "planning", "running")
    done = finished(client, view["id"])
    assert done["counts"] == {
        "listed": 120,
        "scored": 120,
        "quarantined": 0,
        "shards": 30,
        "shards_done": 30,
    }
    assert done["images_per_second"] > 0
    run = root / "runs" / view["id"]
    assert parts(run) == parts(expected)
    assert pq.read_table(run / "slides.parquet").equals(pq.read_table(expected / "slides.parquet"))
    assert [row["slide_id"] for row in done["slides"]] == ["slide-1"]
    assert not (run / "lease.json").exists()
