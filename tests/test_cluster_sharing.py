"""Clusters that grow, shrink and are shared: Ray's own autoscaler, nodes that join, two runs."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml

from bloodcells.pipeline.reaper import start_reaper
from bloodcells.synthetic import BALANCED, draw_slide, write_archive
from cluster.local import HOST, LocalCluster, free_port, local_cluster
from tests.clusters import ROOT, num_published, scores, wait_until

pytestmark = pytest.mark.timeout(1500)

NUM_SHARED = 120
"""Images of each of two runs, a second each: the first gives way after half a minute."""

NUM_ALONE = 400


def write_store(folder: Path, num_images: int) -> Path:
    write_archive(folder, draw_slide(BALANCED, num_images, seed=3), "folder")
    return folder


@contextlib.contextmanager
def scoring(
    store: Path, run: Path, env: dict[str, str], *, module: str = "jobs.score"
) -> Iterator[subprocess.Popen[str]]:
    """Score with a driver on the head node; the driver ends with the ``with``."""
    command = [sys.executable, "-m", module, "--store", str(store), "--out", str(run)]
    command += ["--site", "none"]
    job = subprocess.Popen(
        [*command, "--shard-size", "1"],
        cwd=ROOT,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield job
    finally:
        job.kill()
        job.wait()


def assert_complete(job: subprocess.Popen[str], run: Path, num_images: int) -> str:
    output, _ = job.communicate(timeout=900)
    assert job.returncode == 0, output
    assert len(set(scores(run)["image_uri"].to_pylist())) == num_images == len(scores(run))
    return output


def test_two_runs_share_and_a_node_that_joins_is_used(tmp_path: Path) -> None:
    """The second run need not wait for the first to end, and a node that joins gets work."""
    store = write_store(tmp_path / "slides", NUM_SHARED)
    with contextlib.ExitStack() as ends:
        cluster = ends.enter_context(local_cluster(1, num_cpus=2))
        env = cluster.environment | {"RAY_ADDRESS": cluster.address}
        sleeping = functools.partial(scoring, module="tests.sleeping_run")
        first = ends.enter_context(sleeping(store, tmp_path / "first", env))
        wait_until(lambda: num_published(tmp_path / "first") >= 5, "the first run is at work")
        second = ends.enter_context(sleeping(store, tmp_path / "second", env))
        wait_until(
            lambda: num_published(tmp_path / "second") >= 5 or first.poll() is not None,
            "the second run is at work",
        )
        done = num_published(tmp_path / "first")
        assert done < NUM_SHARED, "the second run had to wait for the first one's end"
        cluster.add_node("late", num_cpus=2)
        wait_until(
            lambda: scorers_on(cluster, "late") >= 1 or second.poll() is not None,
            "the late node has a scorer",
        )
        assert second.poll() is None
        for job, name in ((first, "first"), (second, "second")):
            assert_complete(job, tmp_path / name, NUM_SHARED)


@pytest.fixture
def autoscaled(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Start a head with Ray's autoscaler on fake nodes, 0 to 2; yields a job's environment."""
    port = free_port()
    defaults = Path(ray.__file__).parent / "autoscaler" / "local" / "defaults.yaml"
    config: dict[str, Any] = {
        **yaml.safe_load(defaults.read_text()),
        "cluster_name": "fake",
        "max_workers": 2,
        "idle_timeout_minutes": 0.2,
        "provider": {
            # Ray's own; by its name Ray would look for an example file that its package leaves out.
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "head_node_id": "fffffffffffffffffffffffffffffffffffffffffffffffffff00000",
            "launch_multiple": True,
            "disable_node_updaters": True,
            "gcs_address": f"{HOST}:{port}",
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "cpu": {
                "resources": {"CPU": 1, "object_store_memory": 200_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
        "auth": {},
        "head_node_type": "ray.head.default",
        "upscaling_speed": 10.0,
    }
    path = tmp_path / "autoscaler.json"
    path.write_text(json.dumps(config))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    ours = {
        **token,
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": config["provider"]["head_node_id"],
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": config["provider"]["head_node_id"],
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with tempfile.TemporaryDirectory(prefix="bc-", ignore_cleanup_errors=True) as folder:
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *("--node-ip-address", HOST, "--port", str(port), "--num-cpus", "0"),
            *("--autoscaling-config", str(path), "--temp-dir", folder),
            *("--include-dashboard=false", "--object-store-memory", "200000000"),
        ]
        start_reaper()  # the head ends with this process, however that ends
        with (tmp_path / "head.log").open("wb") as log:
            head = subprocess.Popen(
                command, env=os.environ | ours, stdout=log, stderr=log, start_new_session=True
            )
        try:
            wait_until(lambda: answers(port), "the head listens")
            yield {"RAY_ADDRESS": f"{HOST}:{port}", **token, "RAY_USAGE_STATS_ENABLED": "0"}
        finally:
            family = psutil.Process(head.pid).children(recursive=True)
            head.terminate()
            psutil.wait_procs(family, timeout=20)
            for process in family:
                if process.is_running():
                    process.kill()
            head.wait()


WATCH = """
import sys, time
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
while True:
    infos = client.get_all_node_info(timeout=30).values()
    print(sum(info.state == 0 and not info.is_head_node for info in infos), flush=True)
    time.sleep(0.5)
"""
"""Prints how many nodes are alive beside the head; in a process of its own, with its own token."""


def test_an_autoscaler_follows_a_run_from_no_node_to_two_and_back(
    autoscaled: dict[str, str], tmp_path: Path
) -> None:
    store = write_store(tmp_path / "slides", NUM_ALONE)
    seen: list[int] = []
    with subprocess.Popen(
        [sys.executable, "-c", WATCH, autoscaled["RAY_ADDRESS"]],
        env=os.environ | autoscaled,
        stdout=subprocess.PIPE,
        text=True,
    ) as watch:
        assert watch.stdout is not None
        reader = threading.Thread(target=lambda: seen.extend(map(int, watch.stdout or ())))
        reader.start()
        try:
            wait_until(lambda: bool(seen), "the head answers")
            with scoring(store, tmp_path / "run", autoscaled) as job:
                output = assert_complete(job, tmp_path / "run", NUM_ALONE)
            wait_until(lambda: seen[-1] == 0, "the nodes are given back")
        finally:
            watch.kill()
            reader.join()
    assert seen[0] == seen[-1] == 0
    assert max(seen) == 2, output


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def scorers_on(cluster: LocalCluster, node_name: str) -> int:
    """Return how many scorers work on a node, by its processes."""
    node = next(node for node in cluster.nodes if node.name == node_name)
    family = psutil.Process(node.process.pid).children(recursive=True)
    found = 0
    for process in family:
        try:
            found += "TimedScorer" in " ".join(process.cmdline())
        except psutil.Error:
            continue
    return found
