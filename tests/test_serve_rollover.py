"""The endpoint on a cluster, deployed as ``docs/api.md`` has it: new models, processes that die."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.imaging import content_hash
from bloodcells.pipeline.reaper import MARK, end_marked
from bloodcells.synthetic import BALANCED, draw_slide
from bloodcells.synthetic.archives import write_archive
from serve.starting import environment, own_ports
from tests.serving import ROOT, free_port

TOKEN = "t" * 30
BIN = Path(sys.executable).parent
RETRY_S = 90


@dataclass
class LiveCluster:
    """A Ray cluster of its own, with the endpoint on it."""

    folder: Path
    env: dict[str, str]
    dashboard: str
    url: str
    head: subprocess.Popen[bytes]

    def deploy(self, bundle: str, **classify: float) -> None:
        """``serve deploy`` the project's configuration, with a bundle and ports of this test."""
        config = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
        config["http_options"] = {"host": "127.0.0.1", "port": int(self.url.rpartition(":")[2])}
        arguments = config["applications"][0]["args"]
        arguments |= {"bundle": bundle, "root": str(self.folder / "data"), "tokens_file": ""}
        arguments |= {"read": [str(self.folder / "store")]}
        arguments["classify"] = {
            **{"min_replicas": 1, "max_replicas": 1, "num_cpus": 0.5},
            **classify,
        }
        arguments["archives"] = {"min_replicas": 0, "max_replicas": 1, "num_cpus": 0.4}
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        command = [BIN / "serve", "deploy", "--address", self.dashboard, path]
        ran = subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr

    def ask(self, method: str, path: str, **given: Any) -> dict[str, Any]:
        """Ask until there is an answer."""
        headers = {"Authorization": f"Bearer {TOKEN}", "Idempotency-Key": f"{method} {path}"}
        deadline = time.monotonic() + RETRY_S
        while True:
            try:
                answer = httpx.request(
                    method, self.url + path, headers=headers, timeout=30, trust_env=False, **given
                )
                if answer.is_success:
                    found: dict[str, Any] = answer.json()
                    return found
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline
            time.sleep(0.3)

    def wait_for(self, digest: str) -> None:
        """Wait until the endpoint answers from a bundle, and from no other."""
        deadline = time.monotonic() + 120
        in_a_row = 0
        while in_a_row < 10:
            assert time.monotonic() < deadline
            try:
                answer = httpx.get(f"{self.url}/readyz", trust_env=False)
                is_it = answer.status_code == 200 and answer.json()["bundle_digest"] == digest
            except httpx.TransportError:
                is_it = False
            in_a_row = in_a_row + 1 if is_it else 0
            time.sleep(0.1)

    def processes(self, name: str) -> list[psutil.Process]:
        """Return the cluster's processes of a name, the youngest first."""
        family = psutil.Process(self.head.pid).children(recursive=True)
        found = []
        for process in family:
            with contextlib.suppress(psutil.Error):  # it has just ended
                if name in process.name() or name in " ".join(process.cmdline()):
                    found.append(process)
        return sorted(found, key=lambda process: -process.create_time())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    folder = tmp_path_factory.mktemp("cluster")
    dashboard, mark = free_port(), f"rollover-{os.getpid()}"
    env = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        **environment(),
        **{"BLOODCELLS_TOKENS": f"anna classify,archives,review {TOKEN}", MARK: mark},
        **{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 24},
        **own_ports(),
    }
    command = [
        *(BIN / "ray", "start", "--head", "--block", "--num-cpus=4"),
        *(f"--port={free_port()}", f"--dashboard-port={dashboard}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-agent-listen-port={free_port()}"),
        *("--object-store-memory=200000000", "--node-ip-address=127.0.0.1"),
    ]
    with (folder / "ray.log").open("wb") as log:
        head = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{dashboard}"
        wait_until(lambda: is_up(address), 60)
        yield LiveCluster(folder, env, address, f"http://127.0.0.1:{free_port()}", head)
    finally:
        family = psutil.Process(head.pid).children(recursive=True)
        head.send_signal(signal.SIGKILL)
        for process in family:
            if process.is_running():
                process.kill()
        end_marked(mark)


def is_up(address: str) -> bool:
    try:
        return httpx.get(f"{address}/api/version", trust_env=False).status_code < 500
    except httpx.TransportError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@dataclass
class Clients:
    """People who classify one cell after the other; those who retry ask until they are answered.

    Attributes:
        answered: of each cell sent, how many answers it got.
        digests: the bundles that answered, in order.
        failures: what went wrong, of those who do not retry.
    """

    url: str
    cells: list[bytes]
    retries: bool
    number: int = 4
    pause_s: float = 0.02
    answered: Counter[int] = field(default_factory=Counter)
    digests: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    sent: int = 0

    def __enter__(self) -> Clients:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work) for _ in range(self.number)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False) as http:
            while not self._stop.is_set():
                with self._lock:
                    number, self.sent = self.sent, self.sent + 1
                self._send(http, number)
                time.sleep(self.pause_s)

    def _send(self, http: httpx.Client, number: int) -> None:
        data = self.cells[number % len(self.cells)]
        deadline = time.monotonic() + (RETRY_S if self.retries else 0)
        while True:
            try:
                answer = http.post("/v1/classify", content=data)
                if answer.status_code == 200:
                    break
                problem = f"{answer.status_code} {answer.text[:200]}"
            except httpx.TransportError as error:
                problem = repr(error)
            if time.monotonic() > deadline:
                self.failures.append(problem)
                return
            time.sleep(0.1)
        (image,) = answer.json()["images"]
        assert image["content_hash"] == content_hash(data), "an answer to somebody else's question"
        with self._lock:
            self.answered[number] += 1
            self.digests.append(answer.json()["bundle_digest"])


@pytest.fixture(scope="module")
def cells() -> list[bytes]:
    return [cell.data for cell in draw_slide(BALANCED, 24, seed=4)]


def test_a_new_model_takes_over_without_a_failed_request(
    cluster: LiveCluster, cells: list[bytes]
) -> None:
    first = ModelBundle.load(shipped_bundle_uri())
    second = replace(first, facts={**first.facts, "remark": "another"})
    second.save(str(cluster.folder / "second"))
    cluster.deploy("")
    cluster.wait_for(first.digest)
    with Clients(cluster.url, cells, retries=False) as clients:
        wait_until(lambda: len(clients.digests) > 50, 60)
        cluster.deploy(f"{cluster.folder / 'second'}@{second.digest}")
        cluster.wait_for(second.digest)
        enough = len(clients.digests) + 100
        wait_until(lambda: len(clients.digests) > enough, 60)
    assert clients.failures == []
    assert set(clients.digests) == {first.digest, second.digest}
    assert set(clients.answered.values()) == {1} and len(clients.answered) == clients.sent
    assert set(clients.digests[-50:]) == {second.digest}


@pytest.mark.parametrize(
    "name",
    [
        *("ray::ServeReplica:bloodcells:Endpoint", "haproxy -db"),
        *("ray::HAProxyManager", "ray::ServeController"),
    ],
)
def test_clients_that_ask_again_lose_nothing(
    name: str, cluster: LiveCluster, cells: list[bytes]
) -> None:
    with Clients(cluster.url, cells, retries=True) as clients:
        wait_until(lambda: len(clients.answered) > 20, 60)
        cluster.processes(name)[0].kill()
        enough = len(clients.answered) + 60
        wait_until(lambda: len(clients.answered) > enough, 90)
    assert clients.failures == []
    assert set(clients.answered.values()) == {1} and len(clients.answered) == clients.sent


def test_an_archive_run_outlives_whatever_dies(cluster: LiveCluster) -> None:
    """The controller, HAProxy, the scorer and the keeper, one after the other in one run."""
    write_archive(cluster.folder / "store" / "slide.tar", draw_slide(BALANCED, 240, seed=9), "tar")
    asked = {"store": str(cluster.folder / "store" / "slide.tar"), "shard_size": 10}
    view = cluster.ask("POST", "/v1/archives", json=asked)
    shards = cluster.folder / "data" / "runs" / view["id"] / "scores"

    def num_done() -> int:
        return len(list(shards.glob("part-*.parquet")))

    wait_until(lambda: num_done() > 0, 90)
    for name in ("ServeController", "haproxy -db", "ArchiveScorer", "ArchiveKeeper"):
        done = num_done()
        assert done < 24, "the kills must come amid the work"
        cluster.processes(name)[0].kill()
        wait_until(lambda done=done: num_done() > done, 90)  # type: ignore[misc]
    wait_until(
        lambda: cluster.ask("GET", f"/v1/archives/{view['id']}")["status"] == "complete", 120
    )
    scored = pq.read_table(shards)["image_uri"].to_pylist()
    assert len(scored) == len(set(scored)) == 240


def test_replicas_follow_the_load_without_a_failed_request(
    cluster: LiveCluster, cells: list[bytes]
) -> None:
    def num_replicas() -> int:
        return len(cluster.processes("ray::ServeReplica:bloodcells:Endpoint"))

    shipped = ModelBundle.load(shipped_bundle_uri())
    cluster.deploy("", max_replicas=2, upscale_delay_s=1, downscale_delay_s=2)
    cluster.wait_for(shipped.digest)
    wait_until(lambda: num_replicas() == 1, 90)
    with Clients(cluster.url, cells, retries=False, number=48, pause_s=0.0) as many:
        wait_until(lambda: num_replicas() == 2, 60)
        enough = len(many.answered) + 500
        wait_until(lambda: len(many.answered) > enough, 90)
    with Clients(cluster.url, cells, retries=False, number=1) as one:
        wait_until(lambda: num_replicas() == 1, 90)
    assert many.failures == one.failures == []


def test_the_configuration_names_settings_that_there_are() -> None:
    text = (ROOT / "serve" / "config.yaml").read_text()
    config = yaml.safe_load(text)
    from serve.settings import ServeSettings

    settings = ServeSettings(**config["applications"][0]["args"])
    assert settings.classify.min_replicas == 1 and settings.archives.min_replicas == 0
    assert re.search(r"import_path: serve.app:build", text)
