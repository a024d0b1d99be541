"""Where labelled cells come from: stores, and what people said of a run's cells."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.cells import CLASSES
from bloodcells.errors import ConfigurationError, NotFoundError, RunError, StoreError
from bloodcells.imaging import content_hash
from bloodcells.publish import plan_bytes
from bloodcells.records import Shard
from bloodcells.reviews import NOT_A_CELL, ReviewedCell, add_review
from bloodcells.scoring import Scorer, score_shard
from bloodcells.stores import open_store, plan_source
from bloodcells.training.adapting_cells import cells_of_run, cells_of_stores
from jobs.adapt import AdaptConfig, run_adaptation
from tests.labelled_cells import KINDS, png, write_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("labelled"))


def test_a_store_that_is_not_all_there_is_refused(store: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "cells.tar", "w") as tar:
        tar.add(store, "cells")
    whole = (tmp_path / "cells.tar").read_bytes()
    (tmp_path / "cells.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match=r"cells\.tar: .*should all be there"):
        cells_of_stores([str(tmp_path / "cells.tar")])


def test_cells_of_a_store(store: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    (copy / "nothing").mkdir()
    (copy / "nothing" / "x.png").write_bytes(png("monocyte", 1))
    shutil.copy(copy / KINDS[0] / "a-0.png", copy / KINDS[0] / "a-0-again.png")
    (copy / KINDS[0] / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    found = cells_of_stores([str(copy)], slide_pattern=r"/(\w)-\d[^/]*$")
    assert np.bincount(found.labels, minlength=8)[[1, 4, 6]].tolist() == [6, 6, 6]
    assert set(found.groups) == {"a", "b", "c"}
    assert found.left_out == {
        "without a label of the eight classes": 1,
        "the same picture again": 1,
        "unreadable": 1,
    }


def test_of_many_cells_few_are_held(monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    monkeypatch.setattr("bloodcells.training.adapting_cells.MOST_A_CLASS", 2)
    monkeypatch.setattr("bloodcells.training.adapting_cells._MOST_HELD", 3)
    found = cells_of_stores([str(store)])
    assert np.bincount(found.labels, minlength=8)[[1, 4, 6]].tolist() == [2, 2, 2]
    assert sum(found.left_out.values()) == 12
    hashes = [content_hash(path.read_bytes()) for path in (store / KINDS[0]).iterdir()]
    kept = [content_hash(found.images[row]) for row in np.flatnonzero(found.labels == 1)]
    assert kept == sorted(hashes)[:2]


def test_two_labels_of_one_picture_are_refused(store: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    shutil.copy(copy / KINDS[0] / "a-0.png", copy / KINDS[1] / "other.png")
    with pytest.raises(StoreError, match="the same picture"):
        cells_of_stores([str(copy)])


def test_an_unlabelled_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png("monocyte", 1))
    with pytest.raises(StoreError, match="no labelled cell"):
        cells_of_stores([str(tmp_path)])
    with pytest.raises(NotFoundError):
        cells_of_stores([str(tmp_path / "nowhere")])


@pytest.fixture(scope="module")
def run_folder(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the store's cells, scored by the shipped bundle."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "run.json").write_text("{}")
    (folder / "plan").mkdir()
    scorer = Scorer(ModelBundle.load(shipped_bundle_uri()), device="cpu", micro_batch=8)
    for number, source in enumerate(open_store(str(store)).sources()):
        shards = [item for item in plan_source(source) if isinstance(item, Shard)]
        (folder / "plan" / f"s{number}-0.parquet").write_bytes(plan_bytes(shards))
        for shard in shards:
            score_shard(shard, scorer, str(folder))
    return folder


def test_cells_of_a_run_are_those_that_people_reviewed(run_folder: Path) -> None:
    with pytest.raises(RunError, match="no cell that a person gave a class"):
        cells_of_run(str(run_folder))
    parts = [pq.read_table(path) for path in sorted((run_folder / "scores").glob("*.parquet"))]
    rows = [row for part in parts for row in part.to_pylist()]
    said = ["monocyte", "basophil", NOT_A_CELL, "monocyte"]
    for row, after in zip(rows, said, strict=False):
        cell = ReviewedCell(**{n: row[n] for n in ReviewedCell.__dataclass_fields__})
        add_review(str(run_folder), cell, after=after, reviewed_by="me", revision_seen=0)
    found = cells_of_run(str(run_folder))
    assert sorted(CLASSES[k] for k in found.labels) == ["basophil", "monocyte", "monocyte"]
    assert found.left_out == {"no cell, by a person": 1}
    assert set(found.groups) <= {row["slide_id"] for row in rows}
    with pytest.raises(ConfigurationError, match="too few"):
        run_adaptation(AdaptConfig(out=str(run_folder.parent / "out"), run=str(run_folder)))
