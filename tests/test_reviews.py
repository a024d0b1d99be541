"""People's words on cells: none is lost, none is written over, and the slides follow them."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloodcells import storage
from bloodcells.bundle import Calibration
from bloodcells.cells import CLASSES, WHITE_CELLS
from bloodcells.errors import ReviewConflictError, RunError
from bloodcells.publish import publish_shard
from bloodcells.records import QUARANTINE_SCHEMA, REVIEWS_SCHEMA, SCORES_SCHEMA, SLIDES_SCHEMA
from bloodcells.reviewed_slides import corrected_slides
from bloodcells.reviews import (
    Review,
    ReviewedCell,
    add_review,
    current_review,
    read_reviews,
)
from bloodcells.slides import slide_table
from tests.s3 import S3Server

CONFUSION = 95 * np.eye(len(CLASSES), dtype=np.int64) + 1
CALIBRATION = Calibration(
    temperature=1.0,
    confusion=CONFUSION,
    train_counts=np.full(len(CLASSES), 500),
    review_below=0.9,
)


def cell(number: int = 0, predicted: str = "neutrophil", shard_id: str = "s0") -> ReviewedCell:
    return ReviewedCell(
        image_uri=f"/store#{number}",
        slide_id="a",
        predicted_class=predicted,
        bundle_digest="sha256:1",
        shard_id=shard_id,
    )


def review(run: Path | str, number: int = 0, after: str = "monocyte", **given: Any) -> Review:
    seen, by = given.pop("seen", 0), given.pop("by", "anna")
    return add_review(
        str(run), cell(number, **given), after=after, reviewed_by=by, revision_seen=seen
    )


def publish(run: Path, predicted: list[str], *, alien: tuple[int, ...] = ()) -> None:
    """Publish one shard ``s0`` of slide ``a``, a cell for each class."""
    n = len(predicted)
    values: dict[str, list[Any]] = {
        "image_uri": [f"/store#{i}" for i in range(n)],
        "slide_id": ["a"] * n,
        "shard_id": ["s0"] * n,
        "predicted_class": predicted,
        "confidence": [0.75] * n,
        "out_of_domain": [i in alien for i in range(n)],
        "needs_review": [True] * n,
        "label": [None] * n,
        "site_digest": [None] * n,
    }
    fill = {"string": "x", "float": 0.125, "int32": 96}
    columns = [
        pa.array(values.get(f.name) or [fill.get(str(f.type))] * n, f.type) for f in SCORES_SCHEMA
    ]
    publish_shard(
        str(run), "s0", pa.table(columns, schema=SCORES_SCHEMA), QUARANTINE_SCHEMA.empty_table()
    )


def test_each_review_follows_the_one_before(tmp_path: Path) -> None:
    first = review(tmp_path, after="monocyte")
    second = review(tmp_path, after="not_a_cell", seen=1, by="ben")
    assert (first.revision, first.before, first.after) == (1, "neutrophil", "monocyte")
    assert (second.revision, second.before, second.reviewed_by) == (2, "monocyte", "ben")
    assert current_review(str(tmp_path), "/store#0") == second
    review(tmp_path, 1, after="neutrophil")
    table = read_reviews(str(tmp_path))
    assert table.schema.equals(REVIEWS_SCHEMA)
    assert [(row["image_uri"], row["revision"]) for row in table.to_pylist()] == [
        ("/store#0", 2),
        ("/store#1", 1),
    ]
    assert len(list((tmp_path / "reviews").iterdir())) == 3  # every earlier word is kept


def test_nobody_reviewed_anything(tmp_path: Path) -> None:
    assert read_reviews(str(tmp_path)).equals(REVIEWS_SCHEMA.empty_table())
    assert current_review(str(tmp_path), "/store#0") is None


def test_the_same_review_sent_twice_is_one(tmp_path: Path) -> None:
    once = review(tmp_path)
    assert review(tmp_path) == once
    review(tmp_path, after="basophil", seen=1, by="ben")
    assert review(tmp_path) == once  # its first answer was lost on the way, and ben came since


def test_who_saw_an_older_word_is_told_the_one_that_stands(tmp_path: Path) -> None:
    review(tmp_path)
    last = review(tmp_path, after="lymphocyte", seen=1)
    for seen in (0, 1, 7):
        with pytest.raises(ReviewConflictError, match=r"anna called it lymphocyte") as caught:
            review(tmp_path, after="basophil", seen=seen, by="ben")
        assert caught.value.current == last
        assert pickle.loads(pickle.dumps(caught.value)).current == last
    with pytest.raises(ReviewConflictError, match="nobody has reviewed it"):
        review(tmp_path, 5, seen=1)


def test_two_people_correcting_one_cell(tmp_path: Path) -> None:
    """Many at once, round after round: each revision has one winner, and the others its name."""
    run = str(tmp_path)
    people = [f"person{n}" for n in range(8)]
    barrier = Barrier(len(people))

    def attempt(person: str, seen: int) -> Review | ReviewConflictError:
        barrier.wait()
        try:
            after = CLASSES[people.index(person)]
            return review(run, after=after, seen=seen, by=person)
        except ReviewConflictError as error:
            return error

    with ThreadPoolExecutor(len(people)) as pool:
        for seen in range(4):
            results = list(pool.map(attempt, people, [seen] * len(people)))
            won = [result for result in results if isinstance(result, Review)]
            assert len(won) == 1
            lost = [result for result in results if isinstance(result, ReviewConflictError)]
            assert len(lost) == len(people) - 1
            assert {error.current for error in lost} == {won[0]}
            assert current_review(run, "/store#0") == won[0]


def test_on_s3_the_second_is_told_too(s3: S3Server) -> None:
    run = f"{s3.uri}/reviewed"
    first = review(run)
    assert review(run) == first
    with pytest.raises(ReviewConflictError) as caught:
        review(run, after="basophil", by="ben")
    assert caught.value.current == first
    assert read_reviews(run)["after"].to_pylist() == ["monocyte"]


def test_reviews_read_before_are_not_read_again(tmp_path: Path) -> None:
    review(tmp_path, 0)
    review(tmp_path, 1)
    known = read_reviews(str(tmp_path))
    review(tmp_path, 1, after="basophil", seen=1)
    review(tmp_path, 2)
    before = storage.bytes_read()
    fresh = read_reviews(str(tmp_path), known=known)
    size = max(path.stat().st_size for path in (tmp_path / "reviews").iterdir())
    assert storage.bytes_read() - before <= 2 * size
    assert fresh.equals(read_reviews(str(tmp_path)))


def test_a_file_that_is_no_review_is_named(tmp_path: Path) -> None:
    review(tmp_path)
    (path,) = (tmp_path / "reviews").iterdir()
    for data in (b"not parquet", b""):
        path.write_bytes(data)
        with pytest.raises(RunError, match=path.name):
            read_reviews(str(tmp_path))
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(RunError, match=path.name):
        read_reviews(str(tmp_path))


def test_a_word_outside_the_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not_a_cell"):
        review(tmp_path, after="blast")
    assert not (tmp_path / "reviews").exists()


def test_slides_follow_the_reviews(tmp_path: Path) -> None:
    predicted = ["neutrophil"] * 60 + ["lymphocyte"] * 38 + ["erythroblast"] * 5
    publish(tmp_path, predicted, alien=(59,))
    run = str(tmp_path)
    machine = slide_table(run, CALIBRATION)
    review(tmp_path, 0, after="monocyte")
    review(tmp_path, 1, after="not_a_cell")
    review(tmp_path, 59, after="eosinophil")
    review(tmp_path, 2, after="neutrophil")
    review(tmp_path, 3, after="basophil", shard_id="of another file")
    table = corrected_slides(run, CALIBRATION, read_reviews(run))
    assert table.schema.equals(SLIDES_SCHEMA)
    ((row, was),) = zip(table.to_pylist(), machine.to_pylist(), strict=True)
    assert was["count_neutrophil"] == 59
    assert row["count_neutrophil"] == 57 and row["count_monocyte"] == row["count_eosinophil"] == 1
    assert row["count_basophil"] == 0
    assert (row["num_out_of_domain"], row["num_review"]) == (1, was["num_review"] - 4)
    assert sum(row[f"count_{n}"] for n in CLASSES) == row["num_scored"] - row["num_out_of_domain"]
    assert row["percent_neutrophil"] == pytest.approx(100 * 57 / 97)
    assert row["erythroblasts_per_100_wbc"] == pytest.approx(100 * 5 / 97)
    assert sum(row[f"estimate_{name}"] for name in WHITE_CELLS) == pytest.approx(100)
    assert corrected_slides(run, CALIBRATION, read_reviews(run), machine=machine).equals(table)


def test_without_reviews_the_slides_are_the_machines(tmp_path: Path) -> None:
    publish(tmp_path, ["neutrophil"] * 9)
    run = str(tmp_path)
    assert corrected_slides(run, CALIBRATION, read_reviews(run)).equals(
        slide_table(run, CALIBRATION)
    )


def test_a_slide_of_no_cells_has_no_differential(tmp_path: Path) -> None:
    publish(tmp_path, ["neutrophil"])
    review(tmp_path, 0, after="not_a_cell")
    (row,) = corrected_slides(str(tmp_path), CALIBRATION, read_reviews(str(tmp_path))).to_pylist()
    assert row["count_neutrophil"] == 0 and row["num_out_of_domain"] == 1
    assert {row[f"{k}_neutrophil"] for k in ("percent", "estimate", "low", "high")} == {None}
