"""The page of augmented cells, from the command that draws it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bloodcells.augment.__main__ import main
from bloodcells.augment.geometry import with_margin
from bloodcells.augment.page import store_fields, synthetic_fields
from bloodcells.imaging import Preprocess
from bloodcells.synthetic import BALANCED, draw_slide, write_archive

SMALL = ("--images", "2", "--views", "3", "--size", "32")


def test_a_page_shows_each_cell_as_it_is_and_changed(tmp_path: Path) -> None:
    out = tmp_path / "page.png"
    assert main(["--out", str(out), *SMALL]) == 0
    page = np.asarray(Image.open(out))
    assert page.shape[1] == 4 * 36 + 8
    preprocess = Preprocess(size=32, crop=0.65)
    field = synthetic_fields(2, preprocess, 0).pixels
    assert field.shape[1] == with_margin(preprocess).size == 49
    for row in range(2):
        # From the bottom, as the caption above takes as many lines as it needs.
        top = page.shape[0] - 4 - 36 * (2 - row)
        plain, *views = (page[top : top + 32, left : left + 32] for left in (4, 44, 80, 116))
        assert np.array_equal(plain, field[row, 8:40, 8:40])
        assert len({view.tobytes() for view in (plain, *views)}) == 4


def test_the_same_seed_gives_the_same_page_and_another_another(tmp_path: Path) -> None:
    pages = [tmp_path / f"{name}.png" for name in "abc"]
    for page, seed in zip(pages, "001", strict=True):
        assert main(["--out", str(page), "--seed", seed, "--augment", "report", *SMALL]) == 0
    first, again, other = (page.read_bytes() for page in pages)
    assert first == again
    assert first != other


def test_a_page_of_a_store_takes_each_class_in_turn(tmp_path: Path) -> None:
    write_archive(tmp_path / "cells", draw_slide(BALANCED, 24, seed=1, size_px=60), "folder")
    (tmp_path / "cells" / "neutrophil" / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    preprocess = Preprocess(size=32)
    fields = store_fields(str(tmp_path / "cells"), 8, preprocess, 0)
    assert fields.pixels.shape == (8, 32, 32, 3)
    assert len(set(fields.image_ids.tolist())) == 8
    out = tmp_path / "page.jpg"
    several = ("--augment", "mixup=1", "--augment", "flips,cutmix=1")
    arguments = ["--out", str(out), "--store", str(tmp_path / "cells"), *SMALL, *several]
    assert main([*arguments, "--images", "1"]) == 0
    assert Image.open(out).format == "JPEG"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "page.gif"], "--out page.gif: name a file ending in .png, .jpg"),
        (["--out", "page.png", "--augment", "flip"], "--augment: there is no 'flip'"),
        (["--out", "page.png", "--views", "0"], "--views 0: give 1 to 64"),
        (["--out", "page.png", "--seed", "-1"], "--seed -1"),
        (["--out", "page.png", "--size", "4"], "size must be 8 to 1024 px"),
        (["--out", "page.png", "--store", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_store_of_nothing_that_decodes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "a.jpg").write_bytes(b"\xff\xd8\xff no picture")
    assert main(["--out", str(tmp_path / "p.png"), "--store", str(tmp_path / "cells")]) == 1
    assert "no image in it can be decoded" in capsys.readouterr().err
