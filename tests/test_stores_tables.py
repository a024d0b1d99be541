"""Stores of rows: arrays in ``.npz`` and tables in Parquet, sound ones and others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloodcells import storage
from bloodcells.errors import StoreError
from bloodcells.records import Shard
from bloodcells.stores import read_shard
from tests.s3 import S3Server
from tests.store_kinds import Planned, place, some_images, some_pixels, write, write_parquet


@pytest.mark.parametrize("where", ["disk", "s3"])
@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_are_read_row_by_row(
    compressed: bool, where: str, s3: S3Server, tmp_path: Path
) -> None:
    pixels, path = some_pixels(130), tmp_path / "slide-7.npz"
    labels = (np.arange(130) % 10 - 1).reshape(-1, 1)
    (np.savez_compressed if compressed else np.savez)(path, images=pixels, labels=labels)
    uri = str(path) if where == "disk" else place(path, s3, f"npz-{compressed}")
    planned = Planned(uri, shard_size=50)
    assert [len(shard.members) for shard in planned.shards] == (
        [130] if compressed else [50, 50, 30]
    )
    read = np.stack([record.data for record in planned.read()])
    assert read.dtype == np.uint8
    assert (read == pixels).all()
    assert planned.members[3].image_uri == f"{storage.normalise(uri)}#3"
    assert [member.label for member in planned.members[:4]] == [
        None,  # -1
        "basophil",
        "eosinophil",
        "erythroblast",
    ]
    assert planned.members[9].label is None  # 8
    # What was asked for is enough, in whatever part.
    (shard,) = Planned(uri, known=lambda member: member.offset % 13 != 5, shard_size=500).shards
    assert [member.offset for member in shard.members] == list(range(5, 130, 13))[
        : len(shard.members)
    ]
    for record in read_shard(shard):
        assert (record.data == pixels[record.member.offset]).all()


@pytest.mark.parametrize("shape", [(9, 6, 5), (9, 6, 5, 1)])
def test_grey_arrays_have_two_dimensions(shape: tuple[int, ...], tmp_path: Path) -> None:
    pixels = (np.arange(270) % 251).astype(np.uint8).reshape(shape)
    np.savez(tmp_path / "grey.npz", images=pixels)
    records = Planned(str(tmp_path / "grey.npz")).read()
    assert (np.stack([record.data for record in records]) == pixels.reshape(9, 6, 5)).all()


@pytest.mark.parametrize(
    ("arrays", "remedy"),
    [
        ({"images": np.zeros((2, 4, 4, 3), np.float32)}, "uint8"),
        ({"images": np.zeros((2, 3, 4, 4), np.uint8)}, "N, H, W, 3"),
        ({"images": np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8))}, "C order"),
        ({"images": np.array([{}, {}], object)}, "Python objects"),
        ({"pictures": np.zeros((2, 4, 4, 3), np.uint8)}, "images="),
        (
            {"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.zeros((3,), np.uint8)},
            r"\(2,\)",
        ),
    ],
)
def test_arrays_of_another_kind_are_refused(
    arrays: dict[str, object], remedy: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "wrong.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match=remedy):
        Planned(str(tmp_path / "wrong.npz"))


def test_tables_as_others_write_them(tmp_path: Path) -> None:
    images = list(some_images(3).values())
    features = (
        b'{"info": {"features": {"label": {"names": ["platelet", "SNE", "?"], '
        b'"_type": "ClassLabel"}, "image": {"_type": "Image"}}}}'
    )
    cells = [{"bytes": images[0], "path": None}, None, {"bytes": None, "path": "x.jpg"}]
    table = pa.table(
        {
            "image": pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "label": pa.array([0, 1, 2], pa.int64()),
            "slide_id": ["s1", None, "s2"],
        }
    ).replace_schema_metadata({b"huggingface": features})
    pq.write_table(table, tmp_path / "hf.parquet")
    planned = Planned(str(tmp_path / "hf.parquet"))
    assert [m.label for m in planned.members] == ["platelet", "neutrophil", None]
    assert [m.slide_id for m in planned.members] == ["s1", "hf", "s2"]
    assert [data for _, data in planned.contents()] == [
        images[0],
        "missing_object",
        "missing_object",
    ]
    write_parquet(tmp_path / "ints.parquet", image=images, cell_type=[0, 7, 8])
    assert [m.label for m in Planned(str(tmp_path / "ints.parquet")).members] == [
        "basophil",
        "platelet",
        None,
    ]
    write_parquet(tmp_path / "none.parquet", name=["a"])
    with pytest.raises(StoreError, match="binary column"):
        Planned(str(tmp_path / "none.parquet"))


def test_row_groups_are_cut_only_where_they_are_large(tmp_path: Path) -> None:
    images = list(some_images(100).values())
    path = tmp_path / "slide.parquet"
    for row_group_size, expected in ((100, [40, 40, 20]), (12, [12] * 8 + [4]), (2, [4] * 25)):
        write_parquet(path, row_group_size=row_group_size, image=images)
        planned = Planned(str(path), shard_size=5)
        assert [len(shard.members) for shard in planned.shards] == expected
        assert [data for _, data in planned.contents()] == images
    for shard in planned.shards:
        (record,) = read_shard(Shard.make(shard.source_uri, shard.kind, shard.members[3:]))
        assert record.data == images[record.member.offset]


def test_tables_of_something_else_among_images(tmp_path: Path) -> None:
    for below in ("", "slide/deep/"):
        write(tmp_path / "store" / f"{below}s", "folder", some_images(3))
        write_parquet(tmp_path / "store" / f"{below}metadata.parquet", name=["a"])
        np.savez(tmp_path / "store" / f"{below}features.npz", features=np.zeros((2, 4)))
    planned = Planned(str(tmp_path / "store"))
    assert len(planned.read()) == 6
    assert sorted(p.uri.removeprefix(f"{tmp_path}/store/") for p in planned.problems) == [
        "features.npz",
        "metadata.parquet",
        "slide/deep/features.npz",
        "slide/deep/metadata.parquet",
    ]
    assert all("left out" in problem.detail for problem in planned.problems)
    assert not planned.ignored
    for name in ("metadata.parquet", "features.npz"):
        with pytest.raises(StoreError):
            Planned(str(tmp_path / "store" / name))
