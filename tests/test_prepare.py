"""The job from end to end on a Ray that the tests share: a dataset, a report, and refusals."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bloodcells import storage
from bloodcells.cells import CLASSES
from bloodcells.datasets import open_dataset, read_manifest
from bloodcells.errors import ConfigurationError, NotFoundError, StoreError
from bloodcells.grouping import Grouping
from bloodcells.pipeline.preparing import build_manifest
from bloodcells.splits import split_of
from bloodcells.synthetic import ImageFile, draw_cell, encode_jpeg, write_archive
from jobs.flags import parse
from jobs.prepare import PrepareConfig, main, prepare
from tests.s3 import S3Server

pytestmark = pytest.mark.usefixtures("ray_cluster")

EVIL = "<script>alert(1)</script>.jpg"


def cells(num_each: int, classes: tuple[str, ...] = CLASSES) -> list[ImageFile]:
    return [
        ImageFile(name=f"{i:03d}.jpg", label=name, data=encode_jpeg(draw_cell(name, i)))
        for name in classes
        for i in range(num_each)
    ]


@pytest.fixture(scope="module")
def images() -> list[ImageFile]:
    rng = np.random.default_rng(0)
    noise = encode_jpeg(rng.integers(0, 256, (360, 360, 3), np.uint8))
    sound = cells(4)
    return [
        *sound,
        ImageFile(name=EVIL, label="platelet", data=noise),
        ImageFile(name="copy.jpg", label="monocyte", data=sound[0].data),
        ImageFile(name="torn.jpg", label="monocyte", data=sound[1].data[:900]),
        ImageFile(name="notes.txt", label="monocyte", data=b"no image"),
    ]


@pytest.fixture(scope="module")
def store(images: list[ImageFile], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("store") / "cells.tar", images, "tar")


def config(store: Path | str, out: Path | str, **more: object) -> PrepareConfig:
    return PrepareConfig(store=(str(store),), out=str(out), **more)  # type: ignore[arg-type]


def test_a_dataset(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = prepare(config(store, tmp_path / "set"))
    printed = capsys.readouterr()
    assert "35 images, 31 used" in printed.out
    assert "warning: the same picture has two labels" in printed.err
    assert open_dataset(str(tmp_path / "set")) == dataset
    assert dataset.counts["ignored"] == 1
    rows = read_manifest(dataset.uri).to_pylist()
    found = {row["name"]: row["findings"] for row in rows if row["findings"]}
    assert found == {
        f"platelet/{EVIL}": ["alien"],
        "monocyte/copy.jpg": ["conflicting_label", "exact_duplicate"],
        "basophil/000.jpg": ["conflicting_label"],
        "monocyte/torn.jpg": ["undecodable"],
    }
    for row in rows:
        if row["used"]:
            assert (row["width_px"], row["height_px"]) == (360, 360)
    report = (tmp_path / "set" / "report.html").read_text()
    assert "<script" not in report
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.jpg" in report
    assert "default-src 'none'" in report
    assert not re.search(r'(src|href)="(?!data:)', report)
    pairs = 2  # the copy beside its original, as a contradiction and as a duplicate
    assert len(re.findall(r"<img ", report)) == 1 + 2 * pairs

    again = prepare(config(store, tmp_path / "again"))
    assert again.digest == dataset.digest, "the same store gives the same bytes"
    over = prepare(config(store, tmp_path / "set"))
    assert over.digest == dataset.digest, "an earlier dataset changes nothing"


def test_on_s3_with_images_added(s3: S3Server, store: Path, tmp_path: Path) -> None:
    storage.put(f"{s3.uri}/prepare/cells/a.tar", store.read_bytes())
    first = prepare(config(f"{s3.uri}/prepare/cells", f"{s3.uri}/prepared/set"))
    before = {row["image_uri"]: row for row in read_manifest(first.uri).to_pylist()}
    more = [
        ImageFile(name=f"b{i}.jpg", label="basophil", data=encode_jpeg(draw_cell("basophil", i)))
        for i in range(90, 98)
    ]
    added = write_archive(tmp_path / "b.tar", more, "tar")
    storage.put(f"{s3.uri}/prepare/cells/b.tar", added.read_bytes())
    second = prepare(config(f"{s3.uri}/prepare/cells", f"{s3.uri}/prepared/set", keep=("alien",)))
    after = {row["image_uri"]: row for row in read_manifest(second.uri).to_pylist()}
    assert len(after) == len(before) + 8
    for uri, row in before.items():
        assert after[uri]["split"] == row["split"]
        assert after[uri]["used"] == (row["used"] or row["findings"] == ["alien"])
    new = [row for uri, row in after.items() if uri not in before]
    assert [row["split"] for row in new] == [split_of(row["content_hash"]) for row in new]


def test_cheaply_without_looking(store: Path) -> None:
    prepared = build_manifest([str(store)], look=False, grouping=Grouping(group_by="image"))
    found = {row["name"]: row["findings"] for row in prepared.manifest.to_pylist()}
    assert found[f"platelet/{EVIL}"] == found["monocyte/torn.jpg"] == []
    assert found["monocyte/copy.jpg"] == ["conflicting_label", "exact_duplicate"]
    assert prepared.num_ignored == 1 and prepared.problems == ()


def test_a_table_of_splits(store: Path, tmp_path: Path) -> None:
    lines = ["shard,member,split"]
    for name in CLASSES:
        words = ("train", "train", "val", "test")
        lines += [f"cells.tar,{name}/{i:03d}.jpg,{word}" for i, word in enumerate(words)]
    (tmp_path / "splits.csv").write_text("\n".join(lines))
    dataset = prepare(config(store, tmp_path / "set", splits=str(tmp_path / "splits.csv")))
    assert dataset.counts["splits"]["val"] == dict.fromkeys(CLASSES, 1)
    assert dataset.counts["splits"]["train"]["basophil"] == 1, "the other has two labels"


# Refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labelled", "message"),
    [
        (cells(2)[:-1], True, "only one usable image of platelet"),
        (cells(2, CLASSES[:-1]), True, "no usable image of platelet; every class"),
        (cells(1)[:1], False, "none of its 1 images has a label"),
        ([ImageFile(name="a.txt", label=None, data=b"x")], False, "no image found, 1 other files"),
    ],
    ids=["one-in-a-class", "class-missing", "no-labels", "no-images"],
)
def test_what_cannot_be_trained_on(
    images: list[ImageFile],
    labelled: bool,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_archive(tmp_path / "cells.tar", images, "tar", labelled=labelled)
    out = tmp_path / "out"
    assert main(["--store", str(tmp_path / "cells.tar"), "--out", str(out)]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and message in errors[0]
    assert not out.exists()


def test_a_damaged_archive_is_spoken_of(store: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.tar").write_bytes(store.read_bytes()[:200_000])
    prepared = build_manifest([str(tmp_path / "torn.tar")], look=False)
    assert len(prepared.problems) == 1


def test_settings_are_checked_before_anything_starts(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--keep nice"):
        config(store, tmp_path, keep=("nice",))
    with pytest.raises(ConfigurationError, match="lie one in the other"):
        prepare(config(store.parent, store.parent / "set"))
    with pytest.raises(ConfigurationError, match="--group-by patient"):
        prepare(config(store, tmp_path / "set", group_by="patient"))
    with pytest.raises(NotFoundError):
        prepare(config(store, tmp_path / "set", splits=str(tmp_path / "none.csv")))
    with pytest.raises(StoreError):
        Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
        prepare(config(tmp_path / "one.png", tmp_path / "set"))
    assert not (tmp_path / "set").exists()


def test_the_flags_stay_as_users_know_them() -> None:
    given = ["--store", "a", "--store", "b", "--out", "c", "--keep", "blurred", "--keep", "alien"]
    parsed = parse(PrepareConfig, "prepare", given)
    assert parsed == PrepareConfig(
        store=("a", "b"), out="c", splits=None, group_by="auto", keep=("blurred", "alien")
    )
