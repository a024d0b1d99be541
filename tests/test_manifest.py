"""From stores to a manifest, without Ray: groups, splits that are brought, who stands for whom."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFilter

from bloodcells.cells import CLASSES
from bloodcells.errors import ConfigurationError, StoreError
from bloodcells.features import Extractor
from bloodcells.grouping import Grouping, Listed, list_source
from bloodcells.manifest import Rules, compose, leaders_of, reference_rows
from bloodcells.measuring import measure_shard
from bloodcells.records import MANIFEST_SCHEMA, ShardKind
from bloodcells.splits import split_of
from bloodcells.stores import open_store
from bloodcells.stores.columns import read_column
from bloodcells.synthetic import ImageFile, draw_cell, encode_jpeg, write_archive

Row = dict[str, Any]


class Eyes:
    """Features that need no network; what they are does not matter here."""

    width = 4

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        return np.full((len(pixels), 4), 0.5, np.float16)


def manifest_of(
    *stores: Path, look: bool = False, rules: Rules | None = None, **grouping: Any
) -> pa.Table:
    rules = rules or Rules()
    extractor: Extractor | None = Eyes() if look else None  # type: ignore[assignment]
    tables = [
        measure_shard(listed, extractor)[0]
        for source in open_store([str(store) for store in stores]).sources()
        for listed in list_source(source, Grouping(**grouping))
        if isinstance(listed, Listed)
    ]
    measured = pa.concat_tables(tables)
    return compose(measured, leaders_of(measured, rules), np.full(len(measured), np.nan), rules)


def by_name(manifest: pa.Table) -> dict[str, Row]:
    return {row["image_uri"].rpartition("/")[2]: row for row in manifest.to_pylist()}


def cell(label: str, number: int, size_px: int = 96) -> ImageFile:
    data = encode_jpeg(draw_cell(label, number, size_px=size_px))
    return ImageFile(name=f"{label}-{number:02d}.jpg", label=label, data=data)


def renamed(image: ImageFile, name: str, **more: Any) -> ImageFile:
    return ImageFile(**({"name": name, "label": image.label, "data": image.data} | more))


def saved(image: ImageFile, quality: int, **more: Any) -> bytes:
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(image.data))
    if radius := more.get("blur"):
        picture = picture.filter(ImageFilter.GaussianBlur(radius))
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def cells() -> list[ImageFile]:
    return [cell(label, i) for label in CLASSES for i in range(6)]


@pytest.fixture(scope="module")
def folder(cells: list[ImageFile], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("cells") / "cells", cells, "folder")


# Splits ----------------------------------------------------------------------------------------


def test_the_same_store_gives_the_same_manifest(folder: Path) -> None:
    one, two = manifest_of(folder), manifest_of(folder)
    assert one.schema.equals(MANIFEST_SCHEMA) and one.equals(two)
    assert one["image_uri"].to_pylist() == sorted(one["image_uri"].to_pylist())
    assert all(one["used"].to_pylist())


@pytest.mark.parametrize("kind", ["tar", "targz", "zip", "parquet"])
def test_a_store_of_any_kind_gives_the_same_splits(
    kind: ShardKind, cells: list[ImageFile], folder: Path, tmp_path: Path
) -> None:
    suffix = {"targz": ".tar.gz"}.get(kind, f".{kind}")
    other = write_archive(tmp_path / f"cells{suffix}", cells, kind)

    def splits(store: Path) -> dict[str, tuple[str, str]]:
        rows = manifest_of(store).to_pylist()
        return {row["content_hash"]: (row["split"], row["label"]) for row in rows}

    assert splits(other) == splits(folder)


def test_a_group_has_the_split_of_its_hash(folder: Path) -> None:
    rows = manifest_of(folder).to_pylist()
    large = [row for row in rows if row["split"] == split_of(row["content_hash"])]
    assert len(large) >= 0.6 * len(rows), "tiny classes are the exception"
    assert {row["group"] == row["content_hash"] for row in rows} == {True}
    for label in CLASSES:
        assert {row["split"] for row in rows if row["label"] == label} == {"train", "val", "test"}


def test_an_earlier_dataset_is_kept(folder: Path, cells: list[ImageFile], tmp_path: Path) -> None:
    """Even what was an exception for a tiny class, and the one that stood for others."""
    before = manifest_of(folder)
    more = [renamed(image, f"aa-{image.name}") for image in cells[:9]]
    more += [cell("basophil", i) for i in range(40, 80)]
    added = write_archive(tmp_path / "added", more, "folder")
    after = manifest_of(folder, added, rules=Rules(previous=before))
    old = {row["image_uri"]: row for row in before.to_pylist()}
    for row in after.to_pylist():
        if known := old.get(row["image_uri"]):
            assert (row["split"], row["used"]) == (known["split"], known["used"])
    assert sum("exact_duplicate" in row["findings"] for row in after.to_pylist()) == 9


def test_the_published_npz(tmp_path: Path) -> None:
    pixels = np.stack([draw_cell(name, i, size_px=96) for name in CLASSES for i in range(4)])
    labels = np.repeat(np.arange(8, dtype=np.uint8), 4)[:, None]
    np.savez(tmp_path / "cells.npz", images=pixels, labels=labels)
    manifest = manifest_of(tmp_path / "cells.npz", look=True)
    assert manifest["label"].to_pylist().count("platelet") == 4
    assert set(manifest["width_px"].to_pylist()) == {96}
    assert all(manifest["used"].to_pylist())


# Groups ----------------------------------------------------------------------------------------


def table_of(path: Path, cells: list[ImageFile], **columns: list[Any]) -> Path:
    known = {"image": [c.data for c in cells], "label": [c.label for c in cells]}
    pq.write_table(pa.table(known | columns), path)
    return path


def test_a_slide_column_groups(cells: list[ImageFile], tmp_path: Path) -> None:
    slides = [f"s{i % 7}" for i in range(len(cells))]
    store = table_of(tmp_path / "a.parquet", cells, slide_id=slides)
    rows = manifest_of(store).to_pylist()
    assert {row["group"] for row in rows} == set(slides)
    for slide in set(slides):
        assert len({row["split"] for row in rows if row["group"] == slide}) == 1
    alone = manifest_of(store, group_by="image").to_pylist()
    assert {row["group"] for row in alone} == {row["content_hash"] for row in alone}


def test_any_column_groups(cells: list[ImageFile], tmp_path: Path) -> None:
    patients = [1.0 + i % 9 for i in range(len(cells) - 1)] + [None]
    store = table_of(tmp_path / "a.parquet", cells, patient=patients)
    rows = manifest_of(store, group_by="patient").to_pylist()
    assert {row["group"] for row in rows if len(row["group"]) < 9} == set("123456789")
    assert sum(row["group"] == row["content_hash"] for row in rows) == 1, "a gap stands alone"


def test_slides_by_pattern(folder: Path) -> None:
    rows = manifest_of(folder, slide_pattern=r"-0(\d)\.jpg").to_pylist()
    assert {row["group"] for row in rows} == set("012345")
    assert {row["group"] for row in manifest_of(folder, group_by="slide").to_pylist()} == {"cells"}


def test_a_column_that_is_not_there(folder: Path, cells: list[ImageFile], tmp_path: Path) -> None:
    for store in (folder, table_of(tmp_path / "a.parquet", cells)):
        with pytest.raises(ConfigurationError, match=r"--group-by patient: .* has no column"):
            manifest_of(store, group_by="patient")


def test_columns_of_npz(tmp_path: Path) -> None:
    path = str(tmp_path / "a.npz")
    np.savez(path, images=np.zeros((2, 8, 8, 3), np.uint8), who=np.array([[3], [4]]), bad=np.eye(2))
    assert read_column(path, "npz", "who") == ["3", "4"]
    assert read_column(path, "npz", "other") is None
    assert read_column(path, "tar", "who") is None
    with pytest.raises(StoreError, match="its column bad cannot be read"):
        read_column(path, "npz", "bad")


# Splits that are brought -----------------------------------------------------------------------


def test_a_split_column_is_respected(cells: list[ImageFile], tmp_path: Path) -> None:
    words = (["train", "validation", "test", None, "holdout", "valid"] * 8)[: len(cells)]
    slides = ["one"] * len(cells)
    store = table_of(tmp_path / "a.parquet", cells, split=words, slide_id=slides)
    rows = manifest_of(store).to_pylist()
    meant = {"validation": "val", "valid": "val", "train": "train", "test": "test"}
    for row in rows:
        assert row["split"] == meant.get(words[row["offset"]])
        assert row["used"] == (row["split"] is not None)
    with pytest.raises(ConfigurationError, match="put group one into train and into val"):
        manifest_of(store, group_by="slide")


def test_a_table_of_splits_is_respected(cells: list[ImageFile], tmp_path: Path) -> None:
    store = write_archive(tmp_path / "cells.tar", cells, "tar")
    named = {("cells.tar", f"{c.label}/{c.name}"): "test" for c in cells[:5]}
    rows = manifest_of(store, splits=named).to_pylist()
    assert sorted(row["split"] or "" for row in rows) == [""] * (len(cells) - 5) + ["test"] * 5
    assert sum(row["used"] for row in rows) == 5


def test_a_copy_never_straddles_what_is_brought(cells: list[ImageFile], tmp_path: Path) -> None:
    store = table_of(
        tmp_path / "a.parquet",
        [cells[0], cells[1], cells[0], cells[1]],
        split=["train", "nowhere", "test", "val"],
    )
    rows = sorted(manifest_of(store, rules=Rules(keep=("exact_duplicate",))).to_pylist(), key=str)
    by_row = {row["offset"]: row["split"] for row in rows}
    assert by_row == {0: "train", 2: "train", 1: "val", 3: "val"}


# Findings --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def troubled(cells: list[ImageFile], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound cells, and one of each trouble."""
    big = [cell("eosinophil", 100 + i, 360) for i in range(4)]
    images = [
        *cells,
        *big,
        renamed(cells[0], "zz-copy.jpg"),
        renamed(cells[1], "zz-other.jpg", label="monocyte"),
        renamed(big[0], "zz-near.jpg", data=saved(big[0], 50)),
        renamed(big[1], "zz-near-other.jpg", data=saved(big[1], 50), label="platelet"),
        renamed(cell("eosinophil", 200, 360), "zz-torn.jpg", data=big[2].data[:2000]),
        renamed(cells[0], "zz-blank.jpg", data=encode_jpeg(np.full((96, 96, 3), 220, np.uint8))),
        renamed(cells[0], "zz-soft.jpg", data=saved(cell("neutrophil", 300, 360), 90, blur=7)),
    ]
    store = tmp_path_factory.mktemp("troubled") / "store"
    write_archive(store, images, "folder")
    (store / "loose.jpg").write_bytes(cell("basophil", 400).data)
    return store


def test_every_trouble_is_found(troubled: Path) -> None:
    rows = by_name(manifest_of(troubled, look=True))
    found = {name: row["findings"] for name, row in rows.items() if row["findings"]}
    assert found == {
        "zz-copy.jpg": ["exact_duplicate"],
        "basophil-01.jpg": ["conflicting_label"],
        "zz-other.jpg": ["conflicting_label", "exact_duplicate"],
        "zz-near.jpg": ["near_duplicate"],
        "eosinophil-101.jpg": ["conflicting_label"],
        "zz-near-other.jpg": ["conflicting_label", "near_duplicate"],
        "zz-torn.jpg": ["undecodable"],
        "zz-blank.jpg": ["blank"],
        "zz-soft.jpg": ["blurred"],
        "loose.jpg": ["unlabelled"],
    }
    for name, row in rows.items():
        assert row["used"] == (not row["findings"])
        assert bool(row["detail"]) == bool(row["findings"])
        assert row["split"] is not None or name == "loose.jpg"
    assert rows["zz-copy.jpg"]["duplicate_of"].endswith("basophil-00.jpg")
    assert rows["zz-near.jpg"]["duplicate_of"].endswith("eosinophil-100.jpg")
    assert "bits of their perceptual hashes differ" in rows["zz-near.jpg"]["detail"]
    assert rows["zz-other.jpg"]["detail"].startswith(
        "the same picture is labelled basophil and monocyte; the same bytes as "
    )


def test_duplicates_never_straddle_even_where_they_are_kept(troubled: Path) -> None:
    keep = ("exact_duplicate", "near_duplicate", "conflicting_label")
    rows = by_name(manifest_of(troubled, look=True, rules=Rules(keep=keep)))
    assert rows["zz-copy.jpg"]["used"] and rows["zz-other.jpg"]["used"]
    for row in rows.values():
        if row["duplicate_of"]:
            leader = rows[row["duplicate_of"].rpartition("/")[2]]
            assert (row["group"], row["split"]) == (leader["group"], leader["split"])
    assert not rows["zz-blank.jpg"]["used"]


def test_without_looking_content_still_tells(troubled: Path) -> None:
    rows = by_name(manifest_of(troubled))
    found = {name: row["findings"] for name, row in rows.items() if row["findings"]}
    assert found == {
        "zz-copy.jpg": ["exact_duplicate"],
        "basophil-01.jpg": ["conflicting_label"],
        "zz-other.jpg": ["conflicting_label", "exact_duplicate"],
        "loose.jpg": ["unlabelled"],
    }


def test_an_unlabelled_copy_does_not_stand_for_a_labelled_one(
    cells: list[ImageFile], tmp_path: Path
) -> None:
    first = tmp_path / "store" / "0.jpg"
    write_archive(tmp_path / "store", [cells[0]], "folder")
    first.write_bytes(cells[0].data)
    rows = by_name(manifest_of(tmp_path / "store"))
    assert rows[cells[0].name]["used"]
    assert rows["0.jpg"]["findings"] == ["unlabelled", "exact_duplicate"]


@pytest.mark.parametrize("name", ["undecodable", "unlabelled", "ugly"])
def test_what_cannot_be_kept(name: str) -> None:
    with pytest.raises(
        ConfigurationError, match=f"--keep {name}: .* choose from conflicting_label"
    ):
        Rules(keep=(name,))


def test_the_reference_has_one_of_each_picture(troubled: Path) -> None:
    listed = [
        item
        for source in open_store([str(troubled)]).sources()
        for item in list_source(source, Grouping())
        if isinstance(item, Listed)
    ]
    eyes: Extractor = Eyes()  # type: ignore[assignment]
    measured = pa.concat_tables([measure_shard(item, eyes)[0] for item in listed])
    leaders = leaders_of(measured, Rules())
    rows = reference_rows(measured, leaders, 1000)
    names = [measured["image_uri"][row].as_py().rpartition("/")[2] for row in rows]
    assert not {"zz-copy.jpg", "zz-near.jpg", "zz-torn.jpg", "zz-blank.jpg"} & set(names)
    assert len(names) == len(set(names)) == len(measured) - 6
    few = reference_rows(measured, leaders, 5)
    hashes = measured["content_hash"].to_pylist()
    assert sorted(hashes[row] for row in few) == sorted(hashes[row] for row in rows)[:5]
