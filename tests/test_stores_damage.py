from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloodcells.errors import StorageError, StoreError, UnavailableError
from bloodcells.records import REASONS, Fault
from bloodcells.storage import local
from bloodcells.stores import zip as zip_store
from bloodcells.synthetic import damaged_archives
from tests.store_kinds import (
    ENDINGS,
    Planned,
    some_images,
    some_pixels,
    write,
    write_parquet,
)

STRANGE_NAMES = (
    "../../etc/cell.jpg",
    "/etc/cell.jpg",
    "<script>alert(1)</script>.jpg",
    "\x1b[2J\x1b[31mred.jpg",
    "a#b@512.jpg",
    "ünï ‮gpj.exe.jpg",
    "x" * 150 + "/" + "y" * 200 + ".jpg",
    "new\nline.jpg",
    "C:\\cells\\a.jpg",
)


def test_every_damaged_archive_ends_as_expected(tmp_path: Path) -> None:
    for archive in damaged_archives(tmp_path):
        planned = Planned(str(archive.path))
        found = [
            (
                record.member.name,
                record.data.reason if isinstance(record.data, Fault) else None,
            )
            for record in planned.read()
        ]
        expected = [
            (name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"), reason)
            for name, reason in archive.members
        ]
        assert found[: len(expected)] == expected, archive.why
        if archive.cut_short:
            assert planned.problems, archive.why
            assert all(archive.path.name in problem.uri for problem in planned.problems)
        else:
            assert len(found) == len(expected), archive.why
        assert len({member.image_uri for member in planned.members}) == len(planned.members)


@pytest.mark.parametrize("kind", ["tar", "targz", "zip"])
def test_strange_names_stay_as_they_are(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"slide{ENDINGS[kind]}"
    images = {name: name.encode() for name in STRANGE_NAMES}
    write(path, kind, images)
    planned = Planned(str(path))
    assert planned.contents() == list(images.items())
    assert [m.image_uri for m in planned.members] == [f"{path}#{name}" for name in STRANGE_NAMES]
    assert {m.slide_id for m in planned.members} == {"slide"}


def test_zip_methods_and_late_sizes(tmp_path: Path) -> None:
    path = tmp_path / "slide.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("deflate64.jpg", b"x" * 99)
        archive.writestr("good.jpg", b"y" * 99)
    data = bytearray(path.read_bytes())
    data[8] = 9
    path.write_bytes(data)
    assert Planned(str(path)).contents() == [
        ("deflate64.jpg", "undecodable"),
        ("good.jpg", b"y" * 99),
    ]

    class Pipe(io.RawIOBase):  # what cannot be sought gets its sizes behind the data
        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.data += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[arg-type]
        archive.writestr("a.jpg", b"z" * 999)
    path.write_bytes(pipe.data)
    assert Planned(str(path)).contents() == [("a.jpg", b"z" * 999)]


def test_a_zip_with_a_long_extra_field(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("a.jpg")
    info.extra = struct.pack("<HH", 0x9999, 5000) + bytes(5000)
    with zipfile.ZipFile(tmp_path / "slide.zip", "w") as archive:
        archive.writestr(info, b"z" * 10)
        archive.writestr("b.jpg", b"y" * 9)
    contents = Planned(str(tmp_path / "slide.zip")).contents()
    assert contents == [("a.jpg", b"z" * 10), ("b.jpg", b"y" * 9)]


def test_a_zip_that_lost_its_beginning(tmp_path: Path) -> None:
    path, images = tmp_path / "slide.zip", some_images(5)
    write(path, "zip", images)
    path.write_bytes(path.read_bytes()[100:])
    planned = Planned(str(path))
    assert len(planned.shards) == 1
    first, *others = planned.read()
    assert isinstance(first.data, Fault)
    assert first.data.reason == "undecodable"
    assert "outside the archive" in first.data.detail
    assert [record.data for record in others] == list(images.values())[1:]
    (problem,) = planned.problems
    assert problem.uri == str(path)
    assert "places 1 images outside" in problem.detail


def directory_entry(data: bytes, name: str) -> int:
    """Return where the entry of a member begins in the central directory."""
    return data.index(name.encode(), data.index(b"PK\x01\x02")) - 46


def test_a_zip_whose_directory_points_beyond_it(tmp_path: Path) -> None:
    path, images = tmp_path / "slide.zip", {f"{number}.jpg": b"x" * 99 for number in range(3)}
    write(path, "zip", images)
    data = bytearray(path.read_bytes())
    entry = directory_entry(data, "1.jpg")
    struct.pack_into("<I", data, entry + 42, 2**31)
    struct.pack_into("<I", data, entry + 20, 2**32 - 1)
    path.write_bytes(data)
    planned = Planned(str(path))
    assert dict(planned.contents()) == {**images, "1.jpg": "undecodable"}
    assert planned.problems
    assert all(-1 <= m.offset < 2**63 and 0 <= m.size < 2**63 for m in planned.members)


@pytest.mark.parametrize("where", ["directory", "header"])
def test_encryption_is_seen_wherever_it_is_said(where: str, tmp_path: Path) -> None:
    path = tmp_path / "slide.zip"
    write(path, "zip", {"a.jpg": b"x" * 99, "b.jpg": b"y" * 99})
    before = Planned(str(path)).members
    data = bytearray(path.read_bytes())
    data[directory_entry(data, "a.jpg") + 8 if where == "directory" else 6] |= 1
    path.write_bytes(data)
    planned = Planned(str(path))
    assert planned.contents() == [("a.jpg", "encrypted"), ("b.jpg", b"y" * 99)]
    assert planned.members[1] == before[1]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED])
def test_compressed_members_inflate_to_their_size_only(
    method: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, noise = tmp_path / "slide.zip", some_pixels(50).tobytes()
    members = {"noise.jpg": noise, "empty.jpg": b"", "bomb.jpg": bytes(10**7), "last.jpg": b"z"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content, method)
    whole = path.read_bytes()
    assert Planned(str(path)).contents() == list(members.items())

    data = bytearray(whole)
    struct.pack_into("<I", data, directory_entry(data, "bomb.jpg") + 24, 20_000)
    path.write_bytes(data)
    inflated, lengths = zip_store._inflated, []

    def measured(method: int, data: bytes | memoryview, size: int) -> bytes | None:
        content = inflated(method, data, size)
        lengths.append(len(content or b""))
        return content

    monkeypatch.setattr(zip_store, "_inflated", measured)
    contents = dict(Planned(str(path)).contents())
    assert contents == {**members, "bomb.jpg": "undecodable"}
    assert max(lengths) == 20_001

    start = 30 + len("noise.jpg")
    path.write_bytes(whole[:start] + b"\xff" * 20 + whole[start + 20 :])
    assert dict(Planned(str(path)).contents()) == {**members, "noise.jpg": "undecodable"}


def test_one_bad_name_leaves_a_zip_listed(tmp_path: Path) -> None:
    names = ["bad-ü.jpg", "good-ü.jpg", "plain.jpg"]
    write(tmp_path / "slide.zip", "zip", {name: name.encode() for name in names})
    data = (tmp_path / "slide.zip").read_bytes().replace(b"bad-\xc3\xbc", b"bad-\xc3\xff")
    (tmp_path / "slide.zip").write_bytes(data)
    planned = Planned(str(tmp_path / "slide.zip"))
    assert [name for name, _ in planned.contents()] == ["bad-\\xc3\\xff.jpg", *names[1:]]
    assert [content for _, content in planned.contents()[1:]] == [
        name.encode() for name in names[1:]
    ]
    assert not planned.problems


def test_an_entry_that_is_there_twice_is_one_image(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "slide.zip", "w") as archive:
        for name in ("a.jpg", "b.jpg"):
            archive.writestr(name, name)
        archive.filelist += archive.filelist[:1] * 2
    planned = Planned(str(tmp_path / "slide.zip"))
    assert planned.contents() == [("a.jpg", b"a.jpg"), ("b.jpg", b"b.jpg")]


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_cut_short(compressed: bool, tmp_path: Path) -> None:
    path = tmp_path / "slide.npz"
    pixels = some_pixels(50)
    (np.savez_compressed if compressed else np.savez)(path, images=pixels)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    planned = Planned(str(path))
    assert planned.problems
    assert not planned.members
    flipped = bytearray(data)
    for position in range(len(data) // 2, len(data) // 2 + 40):
        flipped[position] ^= 0xFF
    path.write_bytes(flipped)
    contents = Planned(str(path)).contents()
    assert len(contents) == 50
    assert (contents[3][1] == pixels[3]).all()
    if compressed:
        assert contents[-1][1] == "undecodable"


def test_tables_with_damage(tmp_path: Path) -> None:
    path, images = tmp_path / "slide.parquet", some_images(100)
    write_parquet(path, row_group_size=20, image=list(images.values()))
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    assert Planned(str(path)).problems
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes(1000) + data[middle + 1000 :])
    contents = Planned(str(path), shard_size=20).contents()
    assert len(contents) == 100
    expected = list(images.values())
    assert [data for _, data in contents[:20]] == expected[:20]
    assert [data for _, data in contents[80:]] == expected[80:]
    assert {d for _, d in contents[20:80] if isinstance(d, str)} <= {"undecodable"}


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_that_lost_their_beginning(compressed: bool, tmp_path: Path) -> None:
    path = tmp_path / "slide.npz"
    (np.savez_compressed if compressed else np.savez)(path, images=some_pixels(20))
    path.write_bytes(path.read_bytes()[100:])
    planned = Planned(str(path))
    assert not planned.members
    assert "outside the file" in planned.problems[0].detail


def test_arrays_with_a_bad_name_among_them(tmp_path: Path) -> None:
    path = tmp_path / "slide.npz"
    np.savez(path, **{"images": some_pixels(2), "bad-ü": some_pixels(2)})
    path.write_bytes(path.read_bytes().replace(b"bad-\xc3\xbc", b"bad-\xc3\xff"))
    assert Planned(str(path)).problems


def damage_column(path: Path, row_group: int, column: int) -> None:
    """Overwrite what a column of a row group begins with."""
    chunk = pq.read_metadata(path).row_group(row_group).column(column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 12] = b"\xff" * 12
    path.write_bytes(data)


def test_damage_in_a_row_group_stays_in_it(tmp_path: Path) -> None:
    path, images = tmp_path / "slide.parquet", list(some_images(100).values())
    write_parquet(path, row_group_size=20, image=images)
    damage_column(path, row_group=1, column=0)
    planned = Planned(str(path), shard_size=60)
    assert len(planned.shards) == 2
    contents = [data for _, data in planned.contents()]
    assert contents == images[:20] + ["undecodable"] * 20 + images[40:]
    assert not planned.problems


def test_damaged_labels_do_not_take_the_images_with_them(tmp_path: Path) -> None:
    path, images = tmp_path / "slide.parquet", list(some_images(60).values())
    write_parquet(path, row_group_size=20, image=images, label=["SNE"] * 60, slide_id=["s1"] * 60)
    damage_column(path, row_group=1, column=1)
    planned = Planned(str(path), shard_size=20)
    assert [data for _, data in planned.contents()] == images
    assert [m.name for m in planned.members] == [str(number) for number in range(60)]
    found = [(m.label, m.slide_id) for m in planned.members]
    assert found[:20] == found[40:] == [("neutrophil", "s1")] * 20
    assert found[20:40] == [(None, "slide")] * 20
    (problem,) = planned.problems
    assert "labels and slides of 20 images" in problem.detail


@pytest.mark.parametrize("error", [pa.ArrowMemoryError("full"), StorageError("/x: gone")])
def test_trouble_of_the_machine_is_no_damage_of_a_table(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "slide.parquet"
    write_parquet(path, image=[b"x"] * 9, label=["SNE"] * 9)
    planned = Planned(str(path))

    def iter_batches(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    with pytest.raises(type(error)):
        planned.read()
    with pytest.raises(type(error)):
        Planned(str(path))


def test_a_disk_that_fails_is_no_damage_of_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "slide.parquet"
    write_parquet(path, image=[b"x"] * 9, label=["SNE"] * 9)
    planned = Planned(str(path))

    def readinto(*args: object) -> int:
        raise UnavailableError("the disk is away")

    monkeypatch.setattr(local._CountedFile, "readinto", readinto)
    with pytest.raises(UnavailableError):
        planned.read()
    with pytest.raises(UnavailableError):
        Planned(str(path))


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    kind=st.sampled_from(["tar", "targz", "zip", "parquet", "npz"]),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=6),
    cut=st.floats(0, 1) | st.none(),
)
def test_no_damage_breaks_the_count(
    kind: str, flips: list[tuple[float, int]], cut: float | None, tmp_path: Path
) -> None:
    """Whatever happens to an archive's bytes: each member a record, and only known reasons."""
    path = tmp_path / f"slide{ENDINGS[kind]}"
    if kind == "npz":
        np.savez_compressed(path, images=some_pixels(6), labels=np.arange(6))
    else:
        write(path, kind, some_images(6))
    data = bytearray(path.read_bytes())
    for position, mask in flips:
        data[int(position * (len(data) - 1))] ^= mask
    path.write_bytes(data if cut is None else data[: int(cut * len(data))])
    try:
        planned = Planned(str(path), shard_size=4)
    except StoreError:
        return
    assert len({member.image_uri for member in planned.members}) == len(planned.members)
    for record in planned.read():
        if isinstance(record.data, Fault):
            assert record.data.reason in REASONS
            assert record.data.detail
