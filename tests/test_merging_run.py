"""A run that is killed while its files are merged ends with every image once, as if never killed.

Real processes: the job's driver is killed with SIGKILL, whatever its merging tasks are doing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from bloodcells.merged import merged_files
from bloodcells.synthetic import BALANCED, ImageFile, draw_slide, write_archive
from jobs.score import ScoreConfig, score
from tests import tiny_bundle

NUM_IMAGES = 120
SHARD_SIZE = 2
MERGED_BYTES = 60_000
"""About seven shards of two images; so there are some files, and a kill comes amid them."""

PATIENCE_S = 300

JOB = """
import sys
from jobs.score import ScoreConfig, score

store, out, bundle, shard_size, merged_bytes = sys.argv[1:]
shards = {"shard_size": int(shard_size), "scorers": "1"}
config = ScoreConfig(store=(store,), out=out, bundle=bundle, site="none", **shards)
score(config, merged_bytes=int(merged_bytes))
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one image that does not decode; a small bundle lies beside it."""
    folder = tmp_path_factory.mktemp("store") / "slides"
    tiny_bundle.untrained().save(str(folder.with_name("bundle")))
    bad = ImageFile(name="bad.jpg", label="monocyte", data=b"text")
    write_archive(folder, [*draw_slide(BALANCED, NUM_IMAGES - 1, seed=5), bad], "folder")
    return folder


@pytest.fixture(scope="module")
def expected(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("expected") / "run"
    finish(store, run)
    return run


def start(store: Path, run: Path) -> subprocess.Popen[str]:
    bundle = store.with_name("bundle")
    return subprocess.Popen(
        [sys.executable, "-c", JOB, *map(str, (store, run, bundle, SHARD_SIZE, MERGED_BYTES))],
        env=dict(os.environ),
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(store: Path, run: Path) -> str:
    job = start(store, run)
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 0, output
    return output


def contents(run: Path) -> dict[str, bytes]:
    """Return all that a run's content is: not its record, nor the report, which names times."""
    tables = ("plan", "scores", "quarantine", "merged", "slides.parquet")
    paths = [path for name in tables for path in [run / name, *(run / name).glob("*")]]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths if path.is_file()}


def rows(run: Path, table: str) -> pa.Table:
    return ds.dataset(run / table).to_table().sort_by("image_uri")


def is_merging(run: Path) -> bool:
    return bool(json.loads((run / "run.json").read_text()).get("merging"))


INSTANTS: dict[str, Callable[[Path], bool]] = {
    "the record says so": is_merging,
    "a file is there": lambda run: any((run / "scores").glob("merged-*")),
    "a file counts": lambda run: any((run / "merged").glob("*.json")),
    "parts are gone": lambda run: len(list((run / "scores").glob("part-*"))) < 40,
}


@pytest.mark.timeout(1500)
def test_killed_while_it_merges(store: Path, expected: Path, tmp_path: Path) -> None:
    assert len(merged_files(str(expected))) > 2
    assert len(rows(expected, "scores")) == NUM_IMAGES - 1
    assert len(rows(expected, "quarantine")) == 1
    num_killed = 0
    for instant, has_come in INSTANTS.items():
        job = start(store, tmp_path / "run")
        deadline = time.monotonic() + PATIENCE_S
        while job.poll() is None and time.monotonic() < deadline:
            if (tmp_path / "run" / "run.json").exists() and has_come(tmp_path / "run"):
                job.send_signal(signal.SIGKILL)
                num_killed += 1
                break
            time.sleep(0.001)
        job.wait(timeout=60)
        print(f"killed when {instant}: {sorted(p.name for p in (tmp_path / 'run').iterdir())}")
    assert num_killed, "no kill came amid the merge"
    finish(store, tmp_path / "run")
    assert contents(tmp_path / "run") == contents(expected)


@pytest.mark.timeout(600)
def test_a_finished_merged_run_changes_nothing(store: Path, expected: Path) -> None:
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in expected.rglob("*")}
    assert "complete already" in finish(store, expected)
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in expected.rglob("*")}
    for path in expected.rglob("*.parquet"):
        pq.read_metadata(path)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_quarantined_images_of_a_merged_run_are_tried_again(tmp_path: Path) -> None:
    store = tmp_path / "slide"
    write_archive(store, list(draw_slide(BALANCED, 30, seed=6)), "folder")
    victim = sorted(store.rglob("*.jpg"))[3]
    sound = victim.read_bytes()
    victim.write_bytes(sound[:500])
    run = tmp_path / "run"
    config = ScoreConfig(store=(str(store),), out=str(run), shard_size=2, scorers="1", site="none")
    score(config, merged_bytes=MERGED_BYTES)
    files = {path.name: path.read_bytes() for path in (run / "scores").iterdir()}
    assert not any(name.startswith("part-") for name in files) and len(files) > 1
    assert len(rows(run, "quarantine")) == 1
    victim.write_bytes(sound)
    again = ScoreConfig(
        store=(str(store),),
        out=str(run),
        shard_size=2,
        scorers="1",
        site="none",
        retry_quarantined=True,
    )
    score(again, merged_bytes=MERGED_BYTES)
    assert len(rows(run, "scores")) == 30 == len(set(rows(run, "scores")["image_uri"].to_pylist()))
    assert len(rows(run, "quarantine")) == 0
    assert not list((run / "scores").glob("part-*"))
    kept = {path.name for path in (run / "scores").iterdir() if files.get(path.name)}
    assert kept, "files without a quarantined image stay as they are"


@pytest.mark.usefixtures("ray_cluster")
def test_a_small_run_keeps_its_parts(tmp_path: Path) -> None:
    write_archive(tmp_path / "slide", list(draw_slide(BALANCED, 6, seed=1)), "folder")
    score(
        ScoreConfig(
            store=(str(tmp_path / "slide"),), out=str(tmp_path / "run"), scorers="1", site="none"
        )
    )
    assert len(list((tmp_path / "run" / "scores").glob("part-*"))) > 1
    assert not list((tmp_path / "run" / "scores").glob("merged-*"))
    assert not (tmp_path / "run" / "merged").exists()
