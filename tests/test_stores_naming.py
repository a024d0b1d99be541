from __future__ import annotations

import math
from pathlib import Path

import pytest

from bloodcells.stores.listing import kind_of, stem_of
from bloodcells.stores.naming import UniqueNames, is_hidden, is_image, label_from
from tests.store_kinds import Planned, write, write_parquet

IG = "immature_granulocyte"


@pytest.mark.parametrize(
    ("files", "root", "expected"),
    [
        # A folder is a slide.
        (["s1/a.jpg", "s2/b.jpg"], "store", {"a": ("s1", None), "b": ("s2", None)}),
        # A folder named after a class is not: the one above it is.
        (["s1/neutrophil/a.jpg"], "store", {"a": ("s1", "neutrophil")}),
        (["SNE/a.jpg", "pmy/b.jpg"], "store", {"a": ("store", "neutrophil"), "b": ("store", IG)}),
        # A slide's id is its path below the root.
        (["batch1/s1/a.jpg"], "store", {"a": ("batch1/s1", None)}),
        (["batch1/s1/Monocytes/a.jpg"], "store", {"a": ("batch1/s1", "monocyte")}),
        # A label holds for all below; the nearest counts.
        (["platelet/s1/a.jpg"], "store", {"a": ("platelet/s1", "platelet")}),
        (["platelet/monocyte/a.jpg"], "store", {"a": ("platelet", "monocyte")}),
        # Files right in the root.
        (["a.jpg"], "store", {"a": ("store", None)}),
        (["a.jpg"], "lab/slide9/basophil", {"a": ("slide9", "basophil")}),
    ],
)  # fmt: skip
def test_slides_and_labels_in_folders(
    files: list[str], root: str, expected: dict[str, tuple[str, str | None]], tmp_path: Path
) -> None:
    write(tmp_path / root, "folder", dict.fromkeys(files, b"x"))
    found = {
        Path(m.name).stem: (m.slide_id, m.label) for m in Planned(str(tmp_path / root)).members
    }
    assert found == expected


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_slides_and_labels_in_archives(kind: str, tmp_path: Path) -> None:
    names = ["a.jpg", "./s1/b.jpg", "s1/LYMPHOCYTE/c.jpg", "eosinophils/x/d.jpg"]
    images = {name: name.encode() for name in names}
    write(tmp_path / "lab" / "slide.7.b" / f"deep.{kind}", kind, images)
    write(tmp_path / "lab" / "monocyte" / f"deep.2.{kind}", kind, images)
    found = {
        (m.image_uri.removeprefix(f"{tmp_path}/lab/")): (m.slide_id, m.label)
        for m in Planned(str(tmp_path / "lab")).members
    }
    labels = [None, None, "lymphocyte", "eosinophil"]
    assert found == {
        **{f"slide.7.b/deep.{kind}#{n}": ("deep", x) for n, x in zip(names, labels, strict=True)},
        **{
            f"monocyte/deep.2.{kind}#{n}": ("deep.2", x or "monocyte")
            for n, x in zip(names, labels, strict=True)
        },
    }


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"smear-(?P<slide>[A-Z]\d)(_.*)?", ["M8", "N3", "store"]),
        (r"smear-([A-Z])(\d)", ["M", "N", "store"]),
        (r"smear-..", ["smear-M8", "smear-N3", "store"]),
        (r"nothing", ["store", "store", "store"]),
        (r"smear-M8(x)?", ["store", "store", "store"]),  # a group that matches nothing
    ],
)
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_pattern_over_the_uri(
    kind: str, pattern: str, expected: list[str], tmp_path: Path
) -> None:
    images = {"smear-M8_1.jpg": b"x", "smear-N3_1.jpg": b"x", "zzz.jpg": b"x"}
    path = tmp_path / ("store" if kind == "folder" else "store.tar")
    write(path, kind, images)
    planned = Planned(str(path), slide_pattern=pattern)
    assert [member.slide_id for member in planned.members] == expected


def test_names_of_images_and_archives() -> None:
    assert all(map(is_image, ("a.jpg", "A.JPEG", "b.Png", "x.bmp", "x.tif", "x.TIFF", "x.webp")))
    assert not any(map(is_image, ("a.csv", "jpg", "a.jpg.txt", "")))
    assert all(map(is_hidden, (".a.jpg", "x/._a.jpg", "__MACOSX/a.jpg", ".git/a.jpg")))
    assert not any(map(is_hidden, ("./a.jpg", "../a.jpg", "a.b/c.jpg", "__macosx_/a.jpg")))
    assert [kind_of(name) for name in ("a.tar", "A.TAR.GZ", "a.tgz", "a.pq", "a.gz", "tar")] == [
        *("tar", "targz", "targz", "parquet", None, None)
    ]
    names = ("s3://b/x/slide.1.tar.gz", "slide.tgz", "s.v2.parquet", "a.NPZ", ".zip")
    assert [stem_of(name) for name in names] == ["slide.1", "slide", "s.v2", "a", ".zip"]


def test_repeated_names_stay_apart_from_names_that_look_like_them() -> None:
    unique = UniqueNames()
    given = [("a", 0), ("a@512", 256), ("a", 512), ("a", 512), ("a", 768)]
    assert [unique.of(*member) for member in given] == [
        *("a", "a@512", "a@512@512", "a@512@512@512", "a@768")
    ]


def test_numbers_that_are_labels() -> None:
    assert [label_from(value) for value in (6, 6.0, 0.0)] == [
        "neutrophil",
        "neutrophil",
        "basophil",
    ]
    nothing = (6.5, math.nan, math.inf, -1.0, 8.0, 1e300, None, b"x")
    assert {label_from(value) for value in nothing} == {None}


def test_a_column_of_labels_with_gaps(tmp_path: Path) -> None:
    path = tmp_path / "slide.parquet"
    write_parquet(path, image=[b"x"] * 3, label=[6.0, math.nan, None])
    assert [m.label for m in Planned(str(path)).members] == ["neutrophil", None, None]
