"""Every job on a cluster of a head and two workers, against a real S3 server; nodes that die.

The nodes are processes of this machine, started and killed as ``cluster.local`` does it. What is
stored lies as files in the S3 server's folder, so it is read there.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
import yaml

from bloodcells.bundle_facts import shipped_bundle_uri
from bloodcells.synthetic import BALANCED, draw_slide, write_archive
from cluster.local import LocalCluster, Node, free_port
from serve.starting import environment as serve_environment
from serve.starting import own_ports
from tests.clusters import JOB_S, ROOT, environment, num_published, scores, submit, wait_until
from tests.s3 import S3Server

pytestmark = pytest.mark.timeout(1200)

NUM_IMAGES = 160
SERVE_TOKEN = secrets.token_hex(16)
TRAIN = ("--model", "custom_cnn", "--from-scratch", "--num-workers", "2", "--size", "32")
RECIPE = {"batch_size": 32, "stages": [{"name": "all", "unfreeze": "all", "epochs": 6}]}
PYTHON = ("python", "-m")


class Nodes:
    """A cluster whose nodes a test may kill and replace; its buckets."""

    def __init__(self, cluster: LocalCluster, s3: S3Server) -> None:
        self.cluster = cluster
        self.s3 = s3
        self.workers: list[Node] = []
        self._names = 0

    def start(self) -> None:
        self.cluster.start_head()
        while len(self.workers) < 2:
            self.add_worker()

    def add_worker(self) -> None:
        self._names += 1
        self.workers.append(self.cluster.add_node(f"worker-{self._names}"))

    def kill_worker(self) -> None:
        """Kill one with SIGKILL, and let another join in its place."""
        self.workers.pop().kill()
        self.add_worker()

    def replace_workers(self) -> None:
        """Kill all with SIGKILL, and let as many others join."""
        for worker in self.workers:
            worker.kill()
        number = len(self.workers)
        self.workers.clear()
        for _ in range(number):
            self.add_worker()

    def restart_head(self) -> None:
        """Kill the head, which takes the cluster with it, and start everything anew."""
        for node in self.cluster.nodes:
            node.kill()
        self.cluster.nodes.clear()
        self.workers.clear()
        self.start()

    def uri(self, *parts: str) -> str:
        return "/".join((self.s3.uri, *parts))

    def path(self, *parts: str) -> Path:
        return self.s3.folder.joinpath(*parts)

    def score(self, out: str) -> tuple[str, ...]:
        where = ("--store", self.uri("slides"), "--out", self.uri(out))
        return (*PYTHON, "jobs.score", *where, "--shard-size", "1", "--site", "none")

    def train(self, dataset: str, out: str, *more: str) -> tuple[str, ...]:
        where = ("--dataset", dataset, "--out", out, "--recipe", self.uri("recipe.json"))
        return (*PYTHON, "jobs.train", *where, *TRAIN, *more)


@pytest.fixture(scope="module")
def nodes(s3: S3Server) -> Iterator[Nodes]:
    write_archive(s3.folder / "slides", draw_slide(BALANCED, NUM_IMAGES, seed=7), "folder")
    with tempfile.TemporaryDirectory(prefix="bc-", ignore_cleanup_errors=True) as folder:
        extra = {**s3.env, **serve_environment(), **own_ports()}
        extra["BLOODCELLS_TOKENS"] = f"anna classify,archives,review {SERVE_TOKEN}"
        nodes = Nodes(LocalCluster(folder=Path(folder), extra_env=extra), s3)
        try:
            nodes.start()
            yield nodes
        finally:
            nodes.cluster.stop()


@pytest.fixture(scope="module")
def dataset(nodes: Nodes) -> str:
    """Prepare labelled cells, as a job."""
    write_archive(nodes.path("labelled"), draw_slide(BALANCED, 8 * 24, seed=11), "folder")
    nodes.path("recipe.json").write_text(json.dumps(RECIPE))
    out = nodes.uri("dataset")
    command = [*PYTHON, "jobs.prepare", "--store", nodes.uri("labelled"), "--out", out]
    submit(nodes.cluster, "prepare", [*command, "--keep", "alien"]).finish()
    return out


@pytest.fixture(scope="module")
def bundle(nodes: Nodes, dataset: str) -> str:
    """Train, as a job."""
    out = nodes.uri("bundle")
    submit(nodes.cluster, "train", nodes.train(dataset, out)).finish()
    return out


@pytest.fixture(scope="module")
def uninterrupted(nodes: Nodes) -> pa.Table:
    """Score, as a job, with nothing in its way."""
    output = submit(nodes.cluster, "score", nodes.score("runs/uninterrupted")).finish()
    assert f"complete: {NUM_IMAGES} images listed, {NUM_IMAGES} scored" in output
    return scores(nodes.path("runs", "uninterrupted"))


def test_what_was_trained_on_the_cluster_scores_and_serves(
    nodes: Nodes, bundle: str, tmp_path: Path
) -> None:
    out = nodes.uri("runs", "trained")
    command = [*PYTHON, "jobs.score", "--store", nodes.uri("slides"), "--out", out]
    submit(nodes.cluster, "score-trained", [*command, "--bundle", bundle]).finish()
    rows = scores(nodes.path("runs", "trained"))
    assert len(set(rows["image_uri"].to_pylist())) == len(rows) == NUM_IMAGES
    digest = rows["bundle_digest"][0].as_py()
    config = serve_config(nodes, bundle)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    serving = submit(nodes.cluster, "serve", ["serve", "run", str(tmp_path / "config.yaml")])
    url = f"http://127.0.0.1:{config['http_options']['port']}"
    try:
        wait_until(lambda: is_ready(url) or serving.process.poll() is not None, "the endpoint")
        image = next(nodes.path("slides").rglob("*.jpg"))
        answer = httpx.post(
            f"{url}/v1/classify",
            content=image.read_bytes(),
            headers={"Authorization": f"Bearer {SERVE_TOKEN}", "Content-Type": "image/jpeg"},
            trust_env=False,
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["bundle_digest"] == digest
    finally:
        operator(nodes, "ray", "job", "stop", "serve", "--address", nodes.cluster.dashboard)
        operator(nodes, "serve", "shutdown", "--yes", "--address", nodes.cluster.dashboard)
    assert serving.ended()[0] == 130


def test_a_node_that_dies_in_the_middle_of_scoring(nodes: Nodes, uninterrupted: pa.Table) -> None:
    job = submit(nodes.cluster, "score-killed", nodes.score("runs/killed"))
    run = nodes.path("runs", "killed")
    wait_until(lambda: num_published(run) >= 10, "ten shards are published")
    nodes.kill_worker()
    output = job.finish()
    assert f"complete: {NUM_IMAGES} images listed, {NUM_IMAGES} scored" in output
    assert same_rows(scores(run), uninterrupted)


def test_a_head_that_dies_in_the_middle_of_scoring(nodes: Nodes, uninterrupted: pa.Table) -> None:
    run = nodes.path("runs", "headless")
    job = submit(nodes.cluster, "score-headless", nodes.score("runs/headless"))
    wait_until(lambda: num_published(run) >= 10, "ten shards are published")
    nodes.restart_head()
    code, output = job.ended()
    assert code == 3, output
    assert "run the same command again" in output
    before = {part.name: part.stat().st_mtime_ns for part in (run / "scores").iterdir()}
    submit(nodes.cluster, "score-headless", nodes.score("runs/headless")).finish()
    assert same_rows(scores(run), uninterrupted)
    after = {part.name: part.stat().st_mtime_ns for part in (run / "scores").iterdir()}
    assert before.items() <= after.items()  # what was finished was not done again


def test_a_node_that_dies_in_the_middle_of_training(
    nodes: Nodes, dataset: str, bundle: str
) -> None:
    """The losses of a training that lost both its nodes are those of one that lost none.

    All pictures were decoded on these nodes.
    """
    stormy = nodes.train(dataset, nodes.uri("stormy"))
    job = submit(nodes.cluster, "train-stormy", stormy)
    record = nodes.path("stormy", "training", "training.json")
    wait_until(lambda: len(history(record)) >= 1, "an epoch is trained")
    nodes.replace_workers()
    job.finish()
    expected = history(nodes.path("bundle", "training", "training.json"))
    assert len(expected) >= 2
    assert [e["step"] for e in history(record)] == [e["step"] for e in expected]
    for mine, theirs in zip(history(record), expected, strict=True):
        assert mine["step_losses"] == pytest.approx(theirs["step_losses"], rel=1e-4)


def test_an_id_is_one_piece_of_work(nodes: Nodes, uninterrupted: pa.Table) -> None:
    once = nodes.score("runs/uninterrupted")
    submit(nodes.cluster, "score-once", once).finish()
    assert "score-once is done already" in submit(nodes.cluster, "score-once", once).finish()
    code, output = submit(nodes.cluster, "score-once", nodes.score("runs/another")).ended()
    assert code == 1
    assert "belongs to another command" in output
    wrong = [*PYTHON, "jobs.score", "--store", nodes.uri("nothing"), "--out", nodes.uri("none")]
    for _ in range(2):  # an id that failed may be submitted again
        code, output = submit(nodes.cluster, "wrong", wrong).ended()
        assert code == 1
        assert "s3://cells/nothing does not exist; check --store." in output
    usage = [*PYTHON, "jobs.score"]
    assert submit(nodes.cluster, "usage", usage).ended()[0] == 2


def test_a_stopped_job_goes_on(nodes: Nodes, uninterrupted: pa.Table) -> None:
    run = nodes.path("runs", "stopped")
    job = submit(nodes.cluster, "score-stopped", nodes.score("runs/stopped"))
    wait_until(lambda: num_published(run) >= 1, "a shard is published")
    second = submit(nodes.cluster, "score-stopped", nodes.score("runs/stopped"))
    assert second.process.stdout is not None
    assert "RUNNING already" in second.process.stdout.readline()
    operator(nodes, "ray", "job", "stop", "score-stopped", "--address", nodes.cluster.dashboard)
    for follower in (job, second):
        code, output = follower.ended()
        assert code == 130, output
    assert num_published(run) < NUM_IMAGES
    submit(nodes.cluster, "score-stopped", nodes.score("runs/stopped")).finish()
    assert same_rows(scores(run), uninterrupted)


def test_what_travels_with_a_job_is_small(nodes: Nodes, tmp_path: Path) -> None:
    """A checkout with environments, data and results in it sends its code alone."""
    from ray._private.runtime_env.packaging import (
        create_package,
        get_excludes_from_ignore_files,
    )

    checkout = tmp_path / "checkout"
    shutil.copytree(
        ROOT,
        checkout,
        ignore=lambda folder, names: {n for n in names if n in {".venv", ".git", "demo", "runs"}},
    )
    for clutter in (".venv", "demo", "runs", ".git", "serve-data"):
        (checkout / clutter).mkdir(exist_ok=True)
        (checkout / clutter / "big").write_bytes(os.urandom(2**20))
    package = tmp_path / "package.zip"
    create_package(str(checkout), package, include_gitignore=True)
    assert get_excludes_from_ignore_files(checkout, True)
    ships = sum(path.stat().st_size for path in Path(shipped_bundle_uri()).rglob("*"))
    code = package.stat().st_size - ships  # of weights nothing is gained by packing
    assert 2**20 < code < 2.5 * 2**20  # one of the big files above would be too much
    names = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(package)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "jobs/score.py" in names
    assert "big" not in names and "tests/" not in names


def operator(nodes: Nodes, command: str, *arguments: str) -> None:
    """Run one of Ray's own commands against the cluster."""
    program = Path(sys.executable).with_name(command)
    subprocess.run(
        [program, *arguments], env=environment(nodes.cluster), timeout=JOB_S, capture_output=True
    )


def serve_config(nodes: Nodes, bundle: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    # All nodes share one address here, so one of them answers.
    config["proxy_location"] = "HeadOnly"
    config["http_options"] = {"host": "127.0.0.1", "port": free_port()}
    arguments = config["applications"][0]["args"]
    arguments |= {"bundle": bundle, "root": nodes.uri("served"), "tokens_file": ""}
    arguments["classify"] = {"min_replicas": 1, "max_replicas": 1, "num_cpus": 0.5}
    return config


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def same_rows(rows: pa.Table, expected: pa.Table) -> bool:
    """Compare two runs of one store, row by row."""
    assert len(rows) == NUM_IMAGES
    return bool(rows.equals(expected))


def history(record: Path) -> list[dict[str, Any]]:
    """Return the epochs that a training has recorded so far."""
    try:
        found: list[dict[str, Any]] = json.loads(record.read_text())["history"]
        return found
    except (FileNotFoundError, ValueError):
        return []
