"""Readers go to nodes without a GPU and scorers to those with one; the nodes only claim theirs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from cluster.local import local_cluster
from tests.clusters import ROOT

pytestmark = pytest.mark.timeout(600)

ASK = """
import json, time
import ray
from bloodcells.pipeline.placement import reading_resources, scoring_resources

def where():
    time.sleep(0.5)
    return ray.get_runtime_context().get_node_id()

ray.init(log_to_driver=False, logging_level="ERROR")
names = {node["NodeID"]: node["NodeName"] for node in ray.nodes()}
place = {
    what: sorted({names[node] for node in ray.get([
        ray.remote(where).options(**resources).remote() for _ in range(2)
    ])})
    for what, resources in (
        ("readers", reading_resources("cuda")),
        ("scorers", scoring_resources("cuda")),
    )
}
print(json.dumps(place))
"""


def test_readers_and_scorers_go_to_their_nodes() -> None:
    with local_cluster(1, num_cpus=2) as cluster:
        cluster.add_node("with-gpu", num_cpus=2, num_gpus=1)
        asked = subprocess.run(
            [sys.executable, "-c", ASK],
            cwd=ROOT,
            env=os.environ | cluster.environment | {"RAY_ADDRESS": cluster.address},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert asked.returncode == 0, asked.stderr
    place = json.loads(asked.stdout.splitlines()[-1])
    assert place == {"readers": ["worker-1"], "scorers": ["with-gpu"]}
