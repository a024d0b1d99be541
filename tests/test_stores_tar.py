"""Tar archives, plain and gzipped: formats, links, headers that lie, archives cut short."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from bloodcells.errors import UnavailableError
from bloodcells.records import Fault
from bloodcells.storage import local
from tests.store_kinds import ENDINGS, Planned, some_images, tar_bytes, write


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar(format: int, tmp_path: Path) -> None:
    names = ["a.jpg", "d" * 90 + "/" + "e" * 90 + ".jpg"]
    if format != tarfile.USTAR_FORMAT:
        names.append("ü" * 200 + ".jpg")
    images = [(name, name.encode()) for name in names]
    (tmp_path / "slide.tar").write_bytes(tar_bytes(images, format=format))
    assert Planned(str(tmp_path / "slide.tar")).contents() == images


def test_repeated_names_are_told_apart_by_their_place(tmp_path: Path) -> None:
    images = [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.jpg", b"3"), ("a.jpg", b"4")]
    (tmp_path / "slide.tar").write_bytes(tar_bytes(images))
    planned = Planned(str(tmp_path / "slide.tar"))
    assert planned.contents() == images
    suffixes = [m.image_uri.partition("#")[2] for m in planned.members]
    assert suffixes == ["a.jpg", "b.jpg", "a.jpg@2048", "a.jpg@3072"]


@pytest.mark.parametrize("kind", ["tar", "targz"])
def test_a_tar_cut_anywhere_keeps_what_is_before(kind: str, tmp_path: Path) -> None:
    images = some_images(12)
    path = tmp_path / f"slide{ENDINGS[kind]}"
    write(path, kind, images)
    whole = path.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:length])
        planned = Planned(str(path))
        contents = planned.contents()
        good = [(name, data) for name, data in contents if isinstance(data, bytes)]
        assert good == list(images.items())[: len(good)]
        assert len(contents) <= len(good) + 1
        for _, reason in contents[len(good) :]:
            assert reason == "undecodable"
        ends = tarfile.BLOCKSIZE * 2 if kind == "tar" else 0
        if length < len(whole.rstrip(b"\0")) - ends:
            assert planned.problems


def test_the_cut_member_says_where(tmp_path: Path) -> None:
    data = tar_bytes([("a.jpg", bytes(2000)), ("b.jpg", bytes(2000))])
    (tmp_path / "slide.tar").write_bytes(data[:4000])
    planned = Planned(str(tmp_path / "slide.tar"))
    (_, cut) = planned.read()
    assert isinstance(cut.data, Fault)
    assert "928 bytes into this image of 2,000" in cut.data.detail
    (problem,) = planned.problems
    assert "cut short" in problem.detail


def test_archives_laid_end_to_end_are_read_to_the_end(tmp_path: Path) -> None:
    first, second = some_images(3), some_images(3, seed=1, folder="platelet")
    both = tar_bytes(first.items()) + tar_bytes(second.items())
    (tmp_path / "slide.tar").write_bytes(both)
    planned = Planned(str(tmp_path / "slide.tar"))
    assert planned.contents() == [*first.items(), *second.items()]
    assert not planned.problems


def test_behind_a_broken_header_the_rest_is_found(tmp_path: Path) -> None:
    images = [(f"{number}.jpg", bytes(700)) for number in range(6)]
    data = bytearray(tar_bytes(images))
    data[3 * 1536 + 10] ^= 0xFF
    (tmp_path / "slide.tar").write_bytes(data)
    planned = Planned(str(tmp_path / "slide.tar"))
    assert planned.contents() == images[:3] + images[4:]
    (problem,) = planned.problems
    assert "byte 4,608" in problem.detail


def test_headers_that_lie_about_sizes(tmp_path: Path) -> None:
    def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
        info = tarfile.TarInfo(name)
        info.size, info.type = size, kind
        return info.tobuf(tarfile.GNU_FORMAT)

    path = tmp_path / "slide.tar"
    good = tar_bytes([("good.jpg", b"x" * 600)])[:1536]
    path.write_bytes(good + header("huge.jpg", 10**13) + bytes(1024))
    planned = Planned(str(path))
    assert planned.contents() == [("good.jpg", b"x" * 600), ("huge.jpg", "too_large")]
    assert planned.problems
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
        path.write_bytes(good + header("long", 10**13, kind) + good + bytes(1024))
        planned = Planned(str(path))
        assert planned.contents()[0] == ("good.jpg", b"x" * 600)
        assert planned.problems
    negative = header("back.jpg", 0)
    negative = negative[:124] + b"\xff" * 12 + negative[136:]
    checksum = b"%06o\0 " % (sum(negative[:148]) + 8 * 32 + sum(negative[156:]))
    path.write_bytes(good + negative[:148] + checksum + negative[156:] + good + bytes(1024))
    planned = Planned(str(path))
    assert [name for name, _ in planned.contents()] == ["good.jpg", "good.jpg"]
    assert planned.problems
    # A pax header may say a size, too.
    text = b"15 size=-99999\n"
    path.write_bytes(
        good + header("pax", len(text), tarfile.XHDTYPE) + text.ljust(512, b"\0") + good
    )
    planned = Planned(str(path))
    assert planned.contents()[0] == ("good.jpg", b"x" * 600)
    assert planned.problems


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return a header that may say any size, in base 256 where need be."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\x80" + size.to_bytes(11, "big")
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax_header(kind: bytes = tarfile.XHDTYPE, **fields: str) -> bytes:
    """Return a pax header and its fields."""
    text = b""
    for keyword, value in fields.items():
        field = f" {keyword.replace('_', '.')}={value}\n".encode()
        length = len(field) + len(str(len(field) + 2))
        text += b"%d%s" % (length, field)
    return tar_header("pax", len(text), kind) + text.ljust(512, b"\0")


SPARSE = {"GNU_sparse_major": "1", "GNU_sparse_minor": "0"}


@pytest.mark.parametrize(
    ("damage", "extra"),
    [
        (tar_header("bad.jpg", 2**70), []),
        (tar_header("bad.jpg", 2**62), []),
        (pax_header(size=str(2**70)) + tar_header("bad.jpg", 0), ["bad.jpg"]),
        (pax_header(size="-600") + tar_header("bad.jpg", 0), ["bad.jpg"]),
        (pax_header(size="9" * 400) + tar_header("bad.jpg", 0), ["bad.jpg"]),
        (pax_header(GNU_sparse_size="abc") + tar_header("bad.jpg", 0), ["bad.jpg"]),
        (pax_header(GNU_sparse_size="-5") + tar_header("bad.jpg", 0), ["bad.jpg"]),
        (pax_header(GNU_sparse_realsize=str(2**70)) + tar_header("bad.jpg", 0), ["bad.jpg"]),
        (pax_header(GNU_sparse_map="a,b") + tar_header("bad.jpg", 0), ["bad.jpg"]),
        (pax_header(**SPARSE) + tar_header("bad.jpg", 0), ["bad.jpg"]),
        (pax_header(hdrcharset="BINARY", GNU_sparse_size="x"), []),
        (pax_header(tarfile.XGLTYPE, size="-600", GNU_sparse_size="abc"), None),
        (tar_header("", 0, tarfile.GNUTYPE_LONGNAME) * 1100 + tar_header("bad.jpg", 0), []),
    ],
)
@pytest.mark.parametrize("kind", ["tar", "targz"])
@pytest.mark.parametrize("at_start", [False, True])
def test_absurd_headers_take_no_members_along(
    at_start: bool, kind: str, damage: bytes, extra: list[str] | None, tmp_path: Path
) -> None:
    def member(name: str) -> bytes:
        return tar_header(name, 600) + name.encode().ljust(1024, b"\0")

    data = b"" if at_start else member("before.jpg")
    data += damage + member("after.jpg") + member("last.jpg") + bytes(1024)
    path = tmp_path / f"slide{ENDINGS[kind]}"
    path.write_bytes(data if kind == "tar" else gzip.compress(data))
    planned = Planned(str(path))
    good = ["after.jpg", "last.jpg"] if at_start else ["before.jpg", "after.jpg", "last.jpg"]
    images = {m.name: record for m, record in zip(planned.members, planned.read(), strict=True)}
    assert sorted(images) == sorted(m.name for m in planned.members)
    assert sorted(images) == sorted(good + (extra or []))
    assert all(m.size >= 0 for m in planned.members)
    for name in good:
        assert images[name].data == name.encode().ljust(600, b"\0")
    assert bool(planned.problems) == (extra is not None)


@pytest.mark.parametrize("kind", ["tar", "targz"])
def test_a_sparse_map_that_breaks_off(kind: str, tmp_path: Path) -> None:
    header = bytearray(tar_header("sparse.jpg", 512, tarfile.GNUTYPE_SPARSE))
    header[482] = 1  # the map goes on in a block that is not there
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data = tar_bytes([("good.jpg", b"x")])[:1024] + header
    path = tmp_path / f"slide{ENDINGS[kind]}"
    path.write_bytes(data if kind == "tar" else gzip.compress(data))
    planned = Planned(str(path))
    assert planned.contents() == [("good.jpg", b"x")]
    assert planned.problems


def test_a_disk_that_fails_is_no_damage_of_a_tar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "slide.tar", "tar", some_images(3))

    def readinto(*args: object) -> int:
        raise UnavailableError("the disk is away")

    monkeypatch.setattr(local._CountedFile, "readinto", readinto)
    with pytest.raises(UnavailableError):
        Planned(str(tmp_path / "slide.tar"))


def test_links_and_folders_in_a_tar_are_no_images(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in (("d.jpg", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    (tmp_path / "slide.tar").write_bytes(buffer.getvalue())
    planned = Planned(str(tmp_path / "slide.tar"))
    assert not planned.members
    assert [ignored.examples for ignored in planned.ignored] == [("l.jpg",)]


@pytest.mark.parametrize("kind", ["tar", "targz"])
def test_hard_links_to_images_are_images(kind: str, tmp_path: Path) -> None:
    def link(name: str, target: str) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = tarfile.LNKTYPE, target
        archive.addfile(info)

    images = some_images(30)
    first, second, *_ = images
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link("early.jpg", first)  # its target is not known yet
        for name, data in images.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link("platelet/link.jpg", second)
        link("again.jpg", "platelet/link.jpg")
        link("again.jpg", second)
        link("again.jpg", first)
        link("lost.jpg", "nowhere.jpg")
        link("notes.txt", first)
    path = tmp_path / f"slide{ENDINGS[kind]}"
    path.write_bytes(buffer.getvalue() if kind == "tar" else gzip.compress(buffer.getvalue()))
    planned = Planned(str(path))
    expected = [*images.items(), ("platelet/link.jpg", images[second])]
    expected += [("again.jpg", images[second])] * 2 + [("again.jpg", images[first])]
    assert sorted(planned.contents()) == sorted(expected)
    assert len({member.image_uri for member in planned.members}) == 34
    assert [m.label for m in planned.members if m.name == "platelet/link.jpg"] == ["platelet"]
    assert [ignored.examples for ignored in planned.ignored] == [
        ("early.jpg", "lost.jpg", "notes.txt")
    ]
    assert not planned.problems
    if kind == "targz":  # whose stream goes back only by starting anew
        offsets = [member.offset for member in planned.members]
        assert offsets == sorted(offsets)


def test_a_gzip_stream_with_a_flipped_byte(tmp_path: Path) -> None:
    images = some_images(12)
    write(tmp_path / "slide.tar.gz", "targz", images)
    data = bytearray((tmp_path / "slide.tar.gz").read_bytes())
    data[-5] ^= 0xFF  # in the checksum: all data are there
    (tmp_path / "slide.tar.gz").write_bytes(data)
    planned = Planned(str(tmp_path / "slide.tar.gz"))
    assert planned.contents() == list(images.items())
    assert "damaged" in planned.problems[0].detail


def test_a_gzip_bomb_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bloodcells.stores.targz.MAX_INFLATED_BYTES", 10**6)
    images = [("a.jpg", b"x"), ("bomb.jpg", bytes(10**7)), ("c.jpg", b"x")]
    (tmp_path / "slide.tar.gz").write_bytes(gzip.compress(tar_bytes(images)))
    planned = Planned(str(tmp_path / "slide.tar.gz"))
    assert [member.name for member in planned.members] == ["a.jpg", "bomb.jpg"]
    assert "1,000,000" in planned.problems[0].detail


@pytest.fixture
def newer_tarfile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``tarfile`` read headers by ``_frombuf``, as CPython's main branch does."""
    if hasattr(tarfile.TarInfo, "_frombuf"):
        return
    parse = tarfile.TarInfo.frombuf.__func__  # type: ignore[attr-defined]

    def _frombuf(cls: Any, buf: bytes, encoding: str, errors: str, *, dircheck: bool = True) -> Any:
        return parse(cls, buf, encoding, errors)

    def fromtarfile(cls: Any, archive: Any) -> Any:
        block = archive.fileobj.read(tarfile.BLOCKSIZE)
        header = cls._frombuf(block, archive.encoding, archive.errors)
        header.offset = archive.fileobj.tell() - tarfile.BLOCKSIZE
        return header._proc_member(archive)

    monkeypatch.setattr(tarfile.TarInfo, "_frombuf", classmethod(_frombuf), raising=False)
    monkeypatch.setattr(tarfile.TarInfo, "fromtarfile", classmethod(fromtarfile))


@pytest.mark.usefixtures("newer_tarfile")
@pytest.mark.parametrize(
    "damage",
    [
        b"",
        tar_header("", 2**40, tarfile.GNUTYPE_LONGNAME),
        tar_header("", 0, tarfile.GNUTYPE_LONGNAME) * 1100 + tar_header("bad.jpg", 0),
    ],
)
def test_headers_are_read_by_newer_pythons_too(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "slide.tar"
    path.write_bytes(damage + tar_bytes([("a.jpg", b"first"), ("b.jpg", b"second")]))
    planned = Planned(str(path))
    assert planned.contents() == [("a.jpg", b"first"), ("b.jpg", b"second")]
    assert bool(planned.problems) == bool(damage)
