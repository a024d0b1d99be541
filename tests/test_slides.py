"""The table of slides adds up to the run, and is the same however the run was cut into parts."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloodcells.bundle import Calibration
from bloodcells.cells import CLASSES, WHITE_CELLS
from bloodcells.differential import differential
from bloodcells.errors import RunError
from bloodcells.publish import publish_shard
from bloodcells.records import QUARANTINE_SCHEMA, SCORES_SCHEMA, SLIDES_SCHEMA
from bloodcells.slides import SlideSums, slide_table, write_slides
from jobs.slide_table import format_slides

CALIBRATION = Calibration(
    temperature=1.0,
    confusion=np.diag([100] * len(CLASSES)),
    train_counts=np.full(len(CLASSES), 500),
    review_below=0.9,
)
PERCENTAGES = ("percent", "estimate", "low", "high")


def scores(
    cells: Sequence[tuple[str, str]], *, confidence: float = 0.75, alien: bool = False
) -> pa.Table:
    """Return score rows of ``(slide_id, predicted_class)``."""
    values = {
        "slide_id": [slide_id for slide_id, _ in cells],
        "predicted_class": [predicted for _, predicted in cells],
        "image_uri": [f"/store#{i}" for i in range(len(cells))],
        "confidence": [confidence] * len(cells),
        "out_of_domain": [alien] * len(cells),
        "needs_review": [confidence < CALIBRATION.review_below] * len(cells),
        "label": [None] * len(cells),
        "site_digest": [None] * len(cells),
    }
    fill = {"string": "x", "float": 0.125, "int32": 96}
    return pa.table(
        [
            pa.array(values.get(f.name) or [fill.get(str(f.type))] * len(cells), f.type)
            for f in SCORES_SCHEMA
        ],
        schema=SCORES_SCHEMA,
    )


def quarantine(slide_ids: Sequence[str] = ()) -> pa.Table:
    columns = {
        field.name: list(slide_ids) if field.name == "slide_id" else ["x"] * len(slide_ids)
        for field in QUARANTINE_SCHEMA
    }
    return pa.table(columns, schema=QUARANTINE_SCHEMA)


def cells_of(slide_id: str, **counts: int) -> list[tuple[str, str]]:
    return [(slide_id, name) for name, count in counts.items() for _ in range(count)]


def test_a_run_is_summed_up_by_slide(tmp_path: Path) -> None:
    run = str(tmp_path)
    smear = cells_of("b", neutrophil=60, lymphocyte=38, erythroblast=5)
    publish_shard(run, "0", scores(smear), quarantine(["b", "c", "b"]))
    publish_shard(run, "1", scores(cells_of("b", monocyte=2), confidence=0.95), quarantine(["b"]))
    publish_shard(
        run, "2", scores(cells_of("a", neutrophil=1, platelet=3), alien=True), quarantine()
    )
    table = slide_table(run, CALIBRATION)
    assert table.schema.equals(SLIDES_SCHEMA)
    a, b, c = table.to_pylist()
    assert [a["slide_id"], b["slide_id"], c["slide_id"]] == ["a", "b", "c"]

    assert (b["num_images"], b["num_scored"], b["num_quarantined"]) == (108, 105, 3)
    assert (b["num_review"], b["num_out_of_domain"]) == (103, 0)
    assert (b["count_neutrophil"], b["count_monocyte"], b["count_erythroblast"]) == (60, 2, 5)
    assert b["percent_neutrophil"] == pytest.approx(60)
    assert b["percent_erythroblast"] == b["erythroblasts_per_100_wbc"] == pytest.approx(5)
    assert b["mean_confidence"] == pytest.approx((103 * 0.75 + 2 * 0.95) / 105)
    found = differential(
        np.array([[b[f"count_{name}"] for name in CLASSES]]), CALIBRATION.confusion
    )
    for kind in PERCENTAGES:
        row = [b[f"{kind}_{name}"] for name in CLASSES]
        np.testing.assert_allclose(row, getattr(found, kind)[0], rtol=1e-9)
    assert sum(b[f"estimate_{name}"] for name in WHITE_CELLS) == pytest.approx(100)

    # Cells unlike the training data are scored, but are no part of the differential.
    assert (a["num_images"], a["num_scored"], a["num_out_of_domain"]) == (4, 4, 4)
    assert sum(a[f"count_{name}"] for name in CLASSES) == 0
    assert (c["num_images"], c["num_scored"], c["num_quarantined"]) == (1, 0, 1)
    assert c["mean_confidence"] is None
    for row in (a, c):
        assert row["erythroblasts_per_100_wbc"] is None
        assert {row[f"{kind}_{name}"] for kind in PERCENTAGES for name in CLASSES} == {None}


def test_what_is_printed_of_a_slide_is_corrected_all_along(tmp_path: Path) -> None:
    smear = cells_of("b", neutrophil=60, lymphocyte=38, monocyte=2, erythroblast=5)
    publish_shard(str(tmp_path), "0", scores(smear), quarantine())
    table = slide_table(str(tmp_path), CALIBRATION)
    (row,) = table.to_pylist()
    assert (f"{row['estimate_erythroblast']:.1f}", row["erythroblasts_per_100_wbc"]) == ("4.9", 5)
    _, line = format_slides(table).splitlines()
    expected = [f"{row[f'estimate_{name}']:.1f}" for name in (*WHITE_CELLS, "erythroblast")]
    assert line.split()[4:] == expected


def test_platelets_alone_make_no_differential(tmp_path: Path) -> None:
    publish_shard(str(tmp_path), "0", scores(cells_of("a", platelet=30)), quarantine())
    (row,) = slide_table(str(tmp_path), CALIBRATION).to_pylist()
    assert row["count_platelet"] == 30
    assert row["percent_platelet"] is row["estimate_platelet"] is row["high_neutrophil"] is None


def test_the_table_does_not_depend_on_how_the_run_was_cut(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cells = [(f"slide-{rng.integers(7)}", str(rng.choice(CLASSES))) for _ in range(400)]
    publish_shard(f"{tmp_path}/one", "0", scores(cells), quarantine())
    for number in range(40):
        part = cells[10 * number : 10 * number + 10]
        publish_shard(f"{tmp_path}/many", str(number), scores(part), quarantine())
    one, many = (slide_table(f"{tmp_path}/{run}", CALIBRATION) for run in ("one", "many"))
    assert one.num_rows == 7
    assert one.equals(many)


def test_a_run_that_goes_on_is_summed_up_from_what_is_new(tmp_path: Path) -> None:
    run, sums = str(tmp_path), SlideSums()
    sums.read(run)
    assert sums.table(CALIBRATION).num_rows == sums.num_slides == 0
    for number in range(4):
        cells = cells_of(f"slide-{number % 2}", neutrophil=5 + number, monocyte=1)
        publish_shard(run, str(number), scores(cells), quarantine(["z"]))
        if number:  # what was read is not read again
            (tmp_path / "scores" / "part-0.parquet").write_bytes(b"no longer Parquet")
        sums.read(run)
    assert sums.table(CALIBRATION)["num_images"].to_pylist() == [6 + 8, 7 + 9, 4]
    assert sums.table(CALIBRATION, most=1)["slide_id"].to_pylist() == ["slide-0"]
    (tmp_path / "scores" / "part-0.parquet").unlink()  # a shard that was taken back
    sums.read(run)
    assert sums.table(CALIBRATION)["num_images"].to_pylist() == [8, 7 + 9, 3]
    assert sums.table(CALIBRATION).equals(slide_table(run, CALIBRATION))


def test_writing_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    publish_shard(str(tmp_path), "0", scores(cells_of("a", neutrophil=9)), quarantine(["z"]))
    table = write_slides(str(tmp_path), CALIBRATION)
    first = (tmp_path / "slides.parquet").read_bytes()
    write_slides(str(tmp_path), CALIBRATION)
    assert (tmp_path / "slides.parquet").read_bytes() == first
    assert pq.read_table(tmp_path / "slides.parquet").equals(table)


def test_a_run_without_rows_has_no_slides(tmp_path: Path) -> None:
    publish_shard(str(tmp_path), "0", scores([]), quarantine())
    table = slide_table(str(tmp_path), CALIBRATION)
    assert table.num_rows == 0
    assert table.schema.equals(SLIDES_SCHEMA)


def test_files_on_their_way_are_not_read(tmp_path: Path) -> None:
    publish_shard(str(tmp_path), "0", scores(cells_of("a", neutrophil=9)), quarantine())
    (tmp_path / "scores" / ".tmp-part-1").write_bytes(b"half a file")
    assert slide_table(str(tmp_path), CALIBRATION)["num_images"].to_pylist() == [9]


def test_a_damaged_part_is_named_with_the_remedy(tmp_path: Path) -> None:
    publish_shard(str(tmp_path), "0", scores(cells_of("a", neutrophil=9)), quarantine())
    (tmp_path / "quarantine" / "part-0.parquet").write_bytes(b"not parquet")
    with pytest.raises(RunError, match=r"quarantine/part-0\.parquet .*delete .*scores/part-0"):
        slide_table(str(tmp_path), CALIBRATION)


def test_memory_grows_with_slides_and_not_with_images(tmp_path: Path) -> None:
    part = scores(cells_of("a", neutrophil=2000))

    def peak(run: str, num_parts: int) -> int:
        for number in range(num_parts):
            publish_shard(run, f"{number:03}", part, quarantine())
        tracemalloc.start()
        before = pa.total_allocated_bytes()
        slide_table(run, CALIBRATION)
        assert pa.total_allocated_bytes() == before
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(f"{tmp_path}/warm", 16)
    few, many = peak(f"{tmp_path}/few", 16), peak(f"{tmp_path}/many", 160)
    assert many < 1.3 * few
