"""Synthetic cells can be told apart, and come out the same from every container."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler

from bloodcells.cells import CLASSES
from bloodcells.records import REASONS, ShardKind
from bloodcells.synthetic import (
    BALANCED,
    DIFFERENTIALS,
    ImageFile,
    Stain,
    damaged_archives,
    damaged_files,
    draw_cell,
    draw_slide,
    encode_jpeg,
    write_archive,
    write_smears,
)
from bloodcells.synthetic.archive_damage import PASSWORD
from bloodcells.synthetic.archives import SUFFIXES

KINDS: tuple[ShardKind, ...] = ("folder", "tar", "targz", "zip", "parquet", "npz")


@pytest.fixture(scope="module")
def cells() -> list[ImageFile]:
    return draw_slide(BALANCED, 12, 5, size_px=60)


def decode(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("cell_type", CLASSES)
def test_draws_rgb_of_any_size_the_same_by_seed(cell_type: str) -> None:
    drawn = draw_cell(cell_type, 3)
    assert drawn.shape == (360, 360, 3)
    assert drawn.dtype == np.uint8
    assert np.array_equal(drawn, draw_cell(cell_type, 3))
    assert not np.array_equal(drawn, draw_cell(cell_type, 4))
    assert draw_cell(cell_type, 3, size_px=96).shape == (96, 96, 3)


def test_glass_has_the_colour_of_plasma() -> None:
    drawn = draw_cell("platelet", 0, stain=Stain())
    background = np.median(drawn[drawn.min(axis=2) > 180].reshape(-1, 3), axis=0)
    assert np.abs(background - (254, 228, 202)).max() < 8


def test_same_pixels_in_a_new_process() -> None:
    code = (
        "import hashlib; from bloodcells.synthetic import draw_cell;"
        "print(hashlib.sha256(draw_cell('monocyte', 9).tobytes()).hexdigest())"
    )
    prints = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
        for _ in range(2)
    ]
    assert prints[0] == prints[1]


def features(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """What a person looks at: how much is nucleus, how far it reaches, what colour lies around."""
    middle = pixels[80:280, 80:280].astype(float)
    red, green, blue = middle.transpose(2, 0, 1)
    rows, columns = np.mgrid[-100:100, -100:100]
    radius = np.hypot(rows, columns)
    nucleus = (red < 125) & (blue - green > 40)
    rings = [(radius >= inner) & (radius < inner + 20) for inner in (0, 20, 40, 60)]
    colours = [np.log(middle[ring].mean(axis=0) + 1) for ring in rings]
    shares = [nucleus[ring].mean() for ring in rings]
    darkness = middle[nucleus].mean(axis=0) if nucleus.any() else np.full(3, 200.0)
    roughness = [np.abs(np.diff(red, axis=1))[ring[:, 1:]].mean() for ring in rings]
    return np.concatenate([*colours, shares, darkness / 50, roughness])


def test_types_can_be_told_apart_by_simple_features() -> None:
    def sample(seeds: range) -> tuple[npt.NDArray[Any], list[str]]:
        pairs = [(name, seed) for name in CLASSES for seed in seeds]
        return np.array([features(draw_cell(*pair)) for pair in pairs]), [n for n, _ in pairs]

    train, train_names = sample(range(20))
    test, test_names = sample(range(1000, 1015))
    scaler = StandardScaler().fit(train)
    nearest = NearestCentroid().fit(scaler.transform(train), train_names)
    assert nearest.score(scaler.transform(test), test_names) > 0.9


def test_slide_follows_its_differential() -> None:
    labels = [cell.label for cell in draw_slide({"monocyte": 3, "basophil": 1}, 120, 1, size_px=8)]
    assert set(labels) == {"monocyte", "basophil"}
    assert 0.65 < labels.count("monocyte") / 120 < 0.85


def test_cells_of_a_slide_are_all_different() -> None:
    cells = draw_slide(BALANCED, 100, 2, size_px=16)
    assert len({cell.data for cell in cells}) == len({cell.name for cell in cells}) == 100


@pytest.mark.parametrize("mix", DIFFERENTIALS.values(), ids=DIFFERENTIALS)
def test_white_cells_of_a_differential_add_up_to_100(mix: dict[str, float]) -> None:
    assert sum(mix.values()) - mix.get("platelet", 0) - mix.get("erythroblast", 0) == 100


@pytest.mark.parametrize("mix", [{}, {"monocyte": -1.0}, {"monocyte": 0.0}, {"leucocyte": 1.0}])
def test_refuses_an_impossible_differential(mix: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="differential"):
        draw_slide(mix, 1, 0)


def test_refuses_what_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="erythroblast"):
        draw_cell("red cell", 0)
    with pytest.raises(ValueError, match="size_px"):
        draw_cell("monocyte", 0, size_px=0)


def read_back(path: Path, kind: ShardKind) -> list[tuple[str, bytes]]:
    """Read a container with other means than the library's."""
    if kind == "folder":
        files = (file for file in path.rglob("*") if file.is_file())
        return [(str(file.relative_to(path)), file.read_bytes()) for file in files]
    if kind == "zip":
        with zipfile.ZipFile(path) as archive:
            return [(name, archive.read(name)) for name in archive.namelist()]
    if kind == "parquet":
        rows = pq.read_table(path).to_pylist()
        return [(f"{row['label']}/{row['name']}", row["image"]) for row in rows]
    with tarfile.open(path) as archive:
        files_of = [(member.name, archive.extractfile(member)) for member in archive]
        return [(name, file.read()) for name, file in files_of if file]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "npz"])
def test_every_container_holds_the_same_images(
    tmp_path: Path, cells: list[ImageFile], kind: ShardKind
) -> None:
    path = write_archive(tmp_path / f"slide{SUFFIXES[kind]}", cells, kind)
    assert sorted(read_back(path, kind)) == sorted((f"{c.label}/{c.name}", c.data) for c in cells)


def test_npz_holds_their_pixels(tmp_path: Path, cells: list[ImageFile]) -> None:
    path = write_archive(tmp_path / "slide.npz", cells, "npz")
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["images"].shape == (12, 60, 60, 3)
        assert np.array_equal(arrays["images"][7], decode(cells[7].data))
        assert [CLASSES[n] for n in arrays["labels"][:, 0]] == [c.label for c in cells]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "folder"])
def test_same_images_give_the_same_bytes(
    tmp_path: Path, cells: list[ImageFile], kind: ShardKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_archive(tmp_path / "a" / "slide", cells, kind)
    tomorrow = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    again = write_archive(tmp_path / "b" / "slide", cells, kind)
    assert first.read_bytes() == again.read_bytes()


def test_unlabelled_members_have_no_folder(tmp_path: Path, cells: list[ImageFile]) -> None:
    path = write_archive(tmp_path / "slide.tar", cells, "tar", labelled=False)
    assert [name for name, _ in read_back(path, "tar")] == [cell.name for cell in cells]


def test_nothing_is_written_outside_a_folder(tmp_path: Path) -> None:
    for name in ("../x.jpg", "/x.jpg"):
        image = ImageFile(name=name, label=None, data=b"")
        with pytest.raises(ValueError, match="leads out"):
            write_archive(tmp_path / "in", [image], "folder")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def test_npz_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    sound = ImageFile(name="a.jpg", label="monocyte", data=encode_jpeg(np.zeros((8, 8, 3), "u1")))
    larger = ImageFile(name="b.jpg", label="monocyte", data=encode_jpeg(np.zeros((9, 8, 3), "u1")))
    broken = ImageFile(name="c.jpg", label="monocyte", data=b"")
    for other, message in ((larger, "one size"), (broken, "does not decode")):
        with pytest.raises(ValueError, match=message):
            write_archive(tmp_path / "x.npz", [sound, other], "npz")


def test_smears_do_not_change_when_more_follow(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    few = write_smears(tmp_path / "few", 2, 3, 7, progress=lambda *step: seen.append(step))
    more = write_smears(tmp_path / "more", 3, 3, 7)
    assert seen == [(1, 2), (2, 2)]
    assert [path.name for path in more] == ["slide-0001.tar", "slide-0002.tar", "slide-0003.tar"]
    assert [path.read_bytes() for path in few] == [path.read_bytes() for path in more[:2]]
    assert few[0].read_bytes() != few[1].read_bytes()


def test_command_line_shows_progress(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bloodcells.synthetic", "--out", str(tmp_path)]
    shown = subprocess.run(
        [*command, "--slides", "2", "--cells", "3", "--seed", "1", "--unlabelled"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "slide 2 of 2 (6 cells" in shown.stdout
    names = [name for name, _ in read_back(tmp_path / "slide-0002.tar", "tar")]
    assert names == ["cell-00001.jpg", "cell-00002.jpg", "cell-00003.jpg"]
    refused = subprocess.run([*command, "--slides", "0"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "--slides" in refused.stderr


@pytest.mark.parametrize("file", damaged_files(), ids=lambda file: ascii(file.why))
def test_damage_is_what_it_says(file: Any) -> None:
    assert file.expected_reason is None or file.expected_reason in REASONS
    assert (file.shows is not None) == (file.expected_reason is None)
    if file.expected_reason == "too_large":
        assert b"\x75\x30" in file.data[:400]  # 30,000, as its header says
        assert len(file.data) < 150_000
    elif file.expected_reason == "undecodable":
        with pytest.raises(OSError):
            Image.open(io.BytesIO(file.data)).load()
    elif file.name in ("grey-16-bit.png", "grey-16-bit.tif"):
        wide = np.asarray(Image.open(io.BytesIO(file.data)))
        assert np.array_equal(wide >> 8, file.shows[..., 0])
    else:
        picture = Image.open(io.BytesIO(file.data))
        turned = picture.transpose(Image.Transpose.ROTATE_270) if "turned" in file.name else picture
        shown = np.asarray(turned.convert("RGB")).astype(int)
        assert np.abs(shown - file.shows).mean() < 4


def test_damaged_files_go_into_archives_and_folders(tmp_path: Path) -> None:
    files = damaged_files()
    assert len({file.name for file in files}) == len(files)
    tar = write_archive(tmp_path / "x.tar", files, "tar")
    expected = [f"neutrophil/{file.name}" for file in files]
    assert [name for name, _ in read_back(tar, "tar")] == expected
    assert [n for n, _ in read_back(write_archive(tmp_path / "x.zip", files, "zip"), "zip")] == (
        expected
    )
    on_disk = [file for file in files if not file.archive_only]
    write_archive(tmp_path / "x", on_disk, "folder")
    assert len(read_back(tmp_path / "x", "folder")) == len(on_disk)


def test_damaged_archives_are_what_they_say(tmp_path: Path) -> None:
    made = {archive.path.name: archive for archive in damaged_archives(tmp_path)}
    reasons = {reason for archive in made.values() for _, reason in archive.members}
    assert reasons <= {*REASONS, None}
    for name in ("duplicates.tar", "outside.tar", "latin-names.tar", "no-end.tar"):
        listed = read_back(made[name].path, "tar")
        assert [member for member, _ in listed] == [member for member, _ in made[name].members]
        assert len({data for _, data in listed}) == len(listed)
    for name in ("torn.tar", "torn.tar.gz", "text.tar", "empty.tar"):
        with pytest.raises((tarfile.TarError, EOFError)):
            read_back(made[name].path, "tar")
    with zipfile.ZipFile(made["encrypted.zip"].path) as archive:
        assert decode(archive.read("neutrophil/secret.jpg", pwd=PASSWORD)).shape == (360, 360, 3)
        with pytest.raises(RuntimeError, match="password"):
            archive.read("neutrophil/secret.jpg")
    with zipfile.ZipFile(made["bomb.zip"].path) as archive:
        assert archive.testzip() is None
        assert archive.getinfo("neutrophil/bomb.jpg").file_size == 300 * 2**20
        assert archive.getinfo("neutrophil/bomb.jpg").compress_size < 400_000
    with zipfile.ZipFile(made["crc.zip"].path) as archive:
        assert archive.testzip() == "neutrophil/flipped.jpg"
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(made["torn.zip"].path)
