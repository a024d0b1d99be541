"""The benchmark of size measures the engine itself, with nobody's rows lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from benchmarks import scale_costs
from bloodcells.records import SCORES_SCHEMA
from bloodcells.synthetic import BALANCED, draw_slide, write_archive
from tests.clusters import ROOT

NUM_IMAGES = 24


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "slides"
    write_archive(folder, draw_slide(BALANCED, NUM_IMAGES, seed=5), "folder")
    return folder


def test_every_stage_is_gone_through(store: Path, tmp_path: Path) -> None:
    found = scale_costs.measure(str(store), str(tmp_path / "run"), 5, 10_000)
    assert found["num_images"] == NUM_IMAGES
    assert set(found["cpu_seconds"]) == set(scale_costs.STAGES)
    assert found["files"]["merged"]["files"] > 0  # with files of 10 kB every run is a large one
    rows = ds.dataset(tmp_path / "run" / "scores").to_table()
    assert len(rows) == NUM_IMAGES
    assert (tmp_path / "run" / "report.html").exists()


def test_sleeping_scorers_publish_what_scorers_do(store: Path, tmp_path: Path) -> None:
    asked = {"store": str(store), "out": str(tmp_path / "run"), "shard_size": 5}
    asked |= {"merged_bytes": 2**28, "nodes": 0, "node_cpus": 2, "scorers": 1, "real": False}
    asked |= {"batch_seconds": 0.001, "image_seconds": None, "side_px": 96}
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale_run", json.dumps(asked)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["counts"]["scored"] == NUM_IMAGES
    rows = ds.dataset(tmp_path / "run" / "scores").to_table()
    assert len(rows) == NUM_IMAGES
    assert rows.schema.equals(SCORES_SCHEMA)
