"""Archives that are damaged or laid as traps, with what should become of each of their images.

Zip archives are assembled byte by byte, so that a header can say what no zip program would write.
Knows nothing of how archives are read.
"""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from bloodcells.synthetic.cells import draw_cell
from bloodcells.synthetic.slides import encode_jpeg

STORED: Final = 0
DEFLATED: Final = 8
ENCRYPTED_FLAG: Final = 0x1
UTF8_FLAG: Final = 0x800
BOMB_BYTES: Final = 300 * 2**20
"""What the bombs inflate to: more than any reader should take for one image."""

PASSWORD: Final = b"smear"
"""Opens the encrypted member, so that a test can see that it is nothing but encrypted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedArchive:
    """An archive on disk and what should become of it.

    Attributes:
        path: where it lies.
        why: what is the matter with it, for a person.
        members: name and expected quarantine reason (``None`` where sound) of each image that must
            be listed, in archive order; a name may come twice.
        cut_short: whether the archive breaks off behind these, so that a run must name it. What
            lies at the break may be listed or not; if listed, it needs a row like all others.
    """

    path: Path
    why: str
    members: tuple[tuple[str, str | None], ...]
    cut_short: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _ZipMember:
    """A member as its headers have it; ``crc`` and ``size`` are those of the data if not given."""

    name: str
    body: bytes
    method: int = STORED
    flags: int = UTF8_FLAG
    crc: int | None = None
    size: int | None = None


def damaged_archives(folder: str | Path) -> list[DamagedArchive]:
    """Write one archive of every kind of damage into ``folder``, which is made if need be."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, data, why, members, cut_short in (*_tars(), *_zips()):
        path = folder / name
        path.write_bytes(data)
        written.append(
            DamagedArchive(path=path, why=why, members=tuple(members), cut_short=cut_short)
        )
    return written


_Made = tuple[str, bytes, str, Sequence[tuple[str, str | None]], bool]


def _tars() -> Iterator[_Made]:
    names = [f"neutrophil/cell-{number}.jpg" for number in range(6)]
    whole = _tar(names)
    sound = [(name, None) for name in names]
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        fourth = archive.getmembers()[3]
    middle = fourth.offset_data + fourth.size // 2
    yield "torn.tar", whole[:middle], "a tar cut off within an image", sound[:3], True
    header = fourth.offset + 100
    yield "torn-header.tar", whole[:header], "a tar cut off within a header", sound[:3], True
    last = (len(whole.rstrip(b"\0")) + 511) & ~511  # behind the last image's padding
    yield "no-end.tar", whole[:last], "a tar without its end mark, all images there", sound, True
    packed = gzip.compress(whole, mtime=0)
    yield "torn.tar.gz", packed[: len(packed) // 2], "a gzip stream cut off", sound[:2], True
    broken = bytearray(whole)
    broken[fourth.offset : fourth.offset + 512] = b"\xff" * 512
    yield "broken-header.tar", bytes(broken), "a tar with a broken header", sound[:3], True
    yield "text.tar", b"Not found.\n", "text that is named .tar", [], True
    yield "empty.tar", b"", "a tar of no bytes", [], True

    repeated = [names[0], names[1], names[0], names[0]]
    yield (
        "duplicates.tar",
        _tar(repeated),
        "one name three times, with different images",
        [(name, None) for name in repeated],
        False,
    )
    outside = ["../x.jpg", "../../etc/x.jpg", "/tmp/x.jpg", "neutrophil/../../x.jpg", "./y.jpg"]  # noqa: S108
    yield (
        "outside.tar",
        _tar(outside),
        "names that lead out of the archive",
        [(name, None) for name in outside],
        False,
    )
    strange = ["neutrophil/\udcff\udcfe.jpg", "neutrophil/good.jpg"]
    yield (
        "latin-names.tar",
        _tar(strange),
        "a name that is no UTF-8 (given here with surrogate escapes)",
        [(name, None) for name in strange],
        False,
    )
    company = ["labels.csv", ".DS_Store", "neutrophil/._good.jpg", "neutrophil/good.jpg"]
    yield (
        "company.tar",
        _tar(company),
        "one image among files that are none",
        [(company[-1], None)],
        False,
    )


def _zips() -> Iterator[_Made]:
    good = _ZipMember(name="neutrophil/good.jpg", body=_jpeg(0))
    sound = (good.name, None)
    bomb, bomb_crc = _bomb()
    secret = _jpeg(1)
    cases = {
        "bomb.zip": (
            _ZipMember(
                name="neutrophil/bomb.jpg",
                body=bomb,
                method=DEFLATED,
                crc=bomb_crc,
                size=BOMB_BYTES,
            ),
            "too_large",
            "a member of 300 kB that inflates to 300 MiB and says so",
        ),
        "lying-bomb.zip": (
            _ZipMember(
                name="neutrophil/bomb.jpg", body=bomb, method=DEFLATED, crc=bomb_crc, size=20_000
            ),
            "undecodable",
            "a member that says 20 kB and inflates to 300 MiB",
        ),
        "encrypted.zip": (
            _ZipMember(
                name="neutrophil/secret.jpg",
                body=_encrypt(secret),
                flags=UTF8_FLAG | ENCRYPTED_FLAG,
                crc=zlib.crc32(secret),
                size=len(secret),
            ),
            "encrypted",
            "a member behind a password",
        ),
        "crc.zip": (
            _ZipMember(name="neutrophil/flipped.jpg", body=_jpeg(2), crc=0x12345678),
            "undecodable",
            "a member that does not match its checksum",
        ),
        "garbled.zip": (
            _ZipMember(
                name="neutrophil/garbled.jpg",
                body=b"\xff" * 500,
                method=DEFLATED,
                crc=1,
                size=9_000,
            ),
            "undecodable",
            "a member whose compressed bytes are broken",
        ),
    }
    for name, (bad, reason, why) in cases.items():
        other = _ZipMember(name="neutrophil/other.jpg", body=_jpeg(3))
        data = _zip([good, bad, other])
        yield name, data, why, [sound, (bad.name, reason), (other.name, None)], False

    again = [_ZipMember(name=good.name, body=_jpeg(number)) for number in range(3)]
    yield (
        "duplicates.zip",
        _zip(again),
        "one name three times, with different images",
        [sound] * 3,
        False,
    )
    whole = _zip(again)
    yield "torn.zip", whole[: len(whole) * 2 // 3], "a zip without its directory", [], True
    mac = [_ZipMember(name="__MACOSX/neutrophil/._good.jpg", body=bytes(100)), good]
    yield "mac.zip", _zip(mac), "a zip as a Mac packs it", [sound], False


@cache
def _jpeg(seed: int) -> bytes:
    return encode_jpeg(draw_cell("neutrophil", seed))


def _tar(names: Sequence[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for seed, name in enumerate(names):
            data = _jpeg(seed) if name.endswith(".jpg") else b"1,2,3\n"
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _zip(members: Sequence[_ZipMember]) -> bytes:
    """Assemble a zip archive. Source: PKWARE, APPNOTE.TXT 6.3.10, section 4.3."""
    archive, directory = bytearray(), bytearray()
    for member in members:
        name = member.name.encode()
        crc = zlib.crc32(member.body) if member.crc is None else member.crc
        size = len(member.body) if member.size is None else member.size
        # Version 2.0, flags, method, time 0, date 1980-01-01, checksum, sizes, no extra field.
        common = struct.pack(
            "<HHHHHIIIHH",
            *(20, member.flags, member.method, 0, 0x21, crc, len(member.body), size, len(name), 0),
        )
        entry = struct.pack("<HHHII", 0, 0, 0, 0, len(archive))
        directory += b"PK\x01\x02\x14\x00" + common + entry + name
        archive += b"PK\x03\x04" + common + name + member.body
    counts = len(members), len(members), len(directory), len(archive), 0
    return bytes(archive + directory) + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, *counts)


def _bomb() -> tuple[bytes, int]:
    """Return a raw deflate stream of ``BOMB_BYTES`` zeros and their checksum."""
    zeros, crc = bytes(2**20), 0
    packer = zlib.compressobj(9, wbits=-15)
    parts = []
    for _ in range(BOMB_BYTES // len(zeros)):
        parts.append(packer.compress(zeros))
        crc = zlib.crc32(zeros, crc)
    return b"".join(parts) + packer.flush(), crc


def _encrypt(data: bytes) -> bytes:
    """Encrypt by the traditional zip cipher. Source: PKWARE, APPNOTE.TXT 6.3.10, section 6.1."""
    table = [~zlib.crc32(bytes([value]), 0xFFFFFFFF) & 0xFFFFFFFF for value in range(256)]
    # zlib inverts a checksum on its way in and out: from 0xFFFFFFFF it starts at zero.
    keys = [0x12345678, 0x23456789, 0x34567890]

    def step(byte: int) -> None:
        keys[0] = keys[0] >> 8 ^ table[(keys[0] ^ byte) & 0xFF]
        keys[1] = (keys[1] + (keys[0] & 0xFF)) * 134775813 + 1 & 0xFFFFFFFF
        keys[2] = keys[2] >> 8 ^ table[(keys[2] ^ keys[1] >> 24) & 0xFF]

    for byte in PASSWORD:
        step(byte)
    encrypted = bytearray()
    # Eleven bytes of salt and the high byte of the checksum, by which a reader tests a password.
    for byte in bytes(11) + struct.pack("<I", zlib.crc32(data))[3:] + data:
        mask = keys[2] & 0xFFFF | 2
        encrypted.append(byte ^ (mask * (mask ^ 1) >> 8 & 0xFF))
        step(byte)
    return bytes(encrypted)
