"""A dataset's folder: what is written can be read, what was changed or lacks something is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloodcells import storage
from bloodcells.cells import CLASSES
from bloodcells.datasets import (
    find_dataset,
    open_dataset,
    read_manifest,
    require_trainable,
    write_dataset,
)
from bloodcells.errors import ConfigurationError, DatasetError, StoreError
from bloodcells.records import MANIFEST_SCHEMA
from tests.s3 import S3Server

SPLITS = ["train"] * 8 + ["val", "test"]


def row(label: str | None, number: int, **more: Any) -> dict[str, Any]:
    split = SPLITS[number % 10] if label else None
    uri = f"/cells/{label}/{number:03d}.jpg"
    return {
        **{"image_uri": uri, "content_hash": f"{label}{number}", "slide_id": "cells"},
        **{"group": f"{label}{number}", "label": label, "split": split, "used": bool(split)},
        **{"findings": [], "detail": "", "duplicate_of": None, "width_px": 360, "height_px": 363},
        **{"source_uri": "/cells", "kind": "folder", "name": uri[7:], "offset": 0, "size": 9},
        **{"tag": ""},
        **more,
    }


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)


def images(num_each: int = 10, **numbers: int) -> list[dict[str, Any]]:
    return [row(name, i) for name in CLASSES for i in range(numbers.get(name, num_each))]


def write(uri: Path | str, **more: Any) -> Any:
    settings = {"group_by": "auto", "keep": []}
    return write_dataset(str(uri), table(images()), stores=["/cells"], settings=settings, **more)


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    dataset = write(tmp_path / "set", num_ignored=3, draw=lambda own, _: own.digest)
    assert open_dataset(str(tmp_path / "set")) == dataset
    assert dataset.counts["images"] == dataset.counts["used"] == 80
    assert dataset.counts["ignored"] == 3
    assert dataset.counts["splits"]["val"] == dict.fromkeys(CLASSES, 1)
    assert read_manifest(dataset.uri).equals(table(images()))
    assert read_manifest(dataset.uri, ["label", "split"]).column_names == ["label", "split"]
    assert (tmp_path / "set" / "report.html").read_text() == dataset.digest
    assert len(dataset.digest) == 64


def test_the_same_rows_are_the_same_dataset(tmp_path: Path) -> None:
    assert write(tmp_path / "one").digest == write(tmp_path / "two").digest
    other = write_dataset(str(tmp_path / "two"), table(images(9)), stores=["/cells"], settings={})
    assert other.digest != open_dataset(str(tmp_path / "one")).digest
    assert len(read_manifest(str(tmp_path / "two"))) == 72


def test_on_s3(s3: S3Server) -> None:
    dataset = write(f"{s3.uri}/sets/one")
    assert open_dataset(f"{s3.uri}/sets/one/") == dataset
    assert len(read_manifest(dataset.uri)) == 80


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', '{"format": 1}'])
def test_a_record_that_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DatasetError, match=r"dataset\.json is .*python -m jobs\.prepare"):
        open_dataset(str(tmp_path))


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    record = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(record | {"more": 1}))
    with pytest.raises(DatasetError, match="no dataset's record"):
        open_dataset(str(tmp_path))


def test_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no prepared dataset.*python -m jobs\.prepare"):
        open_dataset(str(tmp_path / "nowhere"))
    assert find_dataset(str(tmp_path / "nowhere")) is None


def test_a_manifest_that_was_changed(tmp_path: Path) -> None:
    write(tmp_path)
    pq.write_table(table(images(9)), tmp_path / "manifest.parquet")
    with pytest.raises(DatasetError, match="not the manifest that"):
        read_manifest(str(tmp_path))
    (tmp_path / "manifest.parquet").unlink()
    with pytest.raises(DatasetError, match=r"manifest\.parquet is missing; .*jobs\.prepare"):
        read_manifest(str(tmp_path))


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    storage.put(str(tmp_path / "run.json"), b"{}")
    with pytest.raises(ConfigurationError, match=r"--out .* holds run\.json"):
        find_dataset(str(tmp_path))


def test_the_record_is_written_last(tmp_path: Path) -> None:
    def fail(*_: object) -> str:
        raise StoreError("no picture")

    with pytest.raises(StoreError):
        write(tmp_path, draw=fail)
    assert not (tmp_path / "dataset.json").exists()


# What cannot be trained on ---------------------------------------------------------------------


def refusal(rows: list[dict[str, Any]], num_ignored: int = 0) -> str:
    with pytest.raises(StoreError) as caught:
        require_trainable(table(rows), ["cells.tar"], num_ignored)
    assert str(caught.value).startswith("--store cells.tar: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_enough_of_everything() -> None:
    assert require_trainable(table(images()), ["cells.tar"]) == []


def test_no_image() -> None:
    assert "no image found, 7 other files" in refusal([], num_ignored=7)


def test_no_label() -> None:
    said = refusal([row(None, i) for i in range(5)])
    assert "none of its 5 images has a label; put images into folders named after" in said


def test_a_class_is_missing() -> None:
    assert "no usable image of monocyte, platelet; every" in refusal(images(monocyte=0, platelet=0))


def test_a_class_was_set_aside() -> None:
    aside = [row("monocyte", i, used=False, findings=["blurred", "alien"]) for i in range(4)]
    assert "no usable image of monocyte (set aside: 4 blurred)" in refusal(
        images(monocyte=0) + aside
    )


def test_one_image_in_a_class() -> None:
    assert "only one usable image of basophil; every class needs" in refusal(images(basophil=1))


def test_a_class_is_not_in_training() -> None:
    rows = [*images(basophil=0), row("basophil", 8), row("basophil", 9)]
    assert "no image of basophil is in the training split" in refusal(rows)


def test_warnings() -> None:
    rows = [*images(basophil=4), row("monocyte", 70, used=False, findings=["conflicting_label"])]
    said = require_trainable(table(rows), ["cells.tar"])
    assert said == [
        "the same picture has two labels: images set aside for it: 1 (the report shows them under "
        "conflicting label)",
        "no image of basophil is in the val split: too few of it",
        "no image of basophil is in the test split: too few of it",
    ]
    only_train = [{**one, "split": "train"} for one in images()]
    assert "no image is in the val split" in require_trainable(table(only_train), ["x"])
