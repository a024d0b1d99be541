"""What pictures say, who is like whom, and what is strange among drawn cells."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter

from bloodcells import quality
from bloodcells.cells import CLASSES
from bloodcells.duplicates import NEAR_BITS, bits_apart, clusters
from bloodcells.features import BACKBONE, Extractor, distances
from bloodcells.imaging import decode
from bloodcells.quality import VIEW, Measurement, measure
from bloodcells.synthetic import draw_cell

NUM_EACH = 5


@pytest.fixture(scope="module")
def cells() -> list[Image.Image]:
    return [Image.fromarray(draw_cell(name, i)) for i in range(NUM_EACH) for name in CLASSES]


@pytest.fixture(scope="module")
def measured(cells: list[Image.Image]) -> list[Measurement]:
    return [look(cell) for cell in cells]


def pixels(image: Image.Image, quality: int = 90) -> np.ndarray:
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=quality)
    return decode(encoded.getvalue(), VIEW).pixels


def look(image: Image.Image, quality: int = 90) -> Measurement:
    return measure(pixels(image, quality))


# Duplicates ------------------------------------------------------------------------------------


def numbers(measured: list[Measurement]) -> list[int]:
    distinct = [str(i) for i in range(len(measured))]
    return clusters(distinct, [one.fingerprint for one in measured]).tolist()


def test_different_cells_are_different(measured: list[Measurement]) -> None:
    assert len(set(numbers(measured))) == len(measured)


@pytest.mark.parametrize(
    "change",
    [
        lambda cell: look(cell, 40),
        lambda cell: look(cell.resize((96, 96), Image.Resampling.BICUBIC)),
        lambda cell: look(cell.resize((224, 224)), 70),
        lambda cell: look(ImageEnhance.Brightness(cell).enhance(1.06)),
        lambda cell: look(ImageEnhance.Contrast(cell).enhance(0.92)),
    ],
    ids=["jpeg-40", "96-px", "224-px", "brighter", "flatter"],
)
def test_a_copy_is_found(
    change: object, cells: list[Image.Image], measured: list[Measurement]
) -> None:
    copies = [change(cell) for cell in cells[:10]]  # type: ignore[operator]
    found = numbers([*measured, *copies])
    assert found[len(measured) :] == found[:10]


@given(
    st.lists(
        st.tuples(st.integers(0, 2**64), st.sets(st.integers(0, 255), max_size=30)), max_size=12
    )
)
def test_clusters_are_what_comparing_all_pairs_gives(seeds: list[tuple[int, set[int]]]) -> None:
    """Pairs within 15 bits are always found: they share one of 16 bands."""
    prints = []
    for seed, flipped in seeds:
        bits = np.random.default_rng(seed % 3).integers(0, 2, 256)
        bits[list(flipped)] ^= 1
        prints.append(np.packbits(bits).tobytes())
    number = clusters([None] * len(prints), list(prints))
    for i in range(len(prints)):
        for j in range(i):
            if bits_apart(prints[i], prints[j]) <= 15:
                assert number[i] == number[j]
    for cluster in set(number.tolist()):
        rows = np.flatnonzero(number == cluster)
        if len(rows) > 1:
            for i in rows:
                others = (bits_apart(prints[i], prints[j]) for j in rows if j != i)
                assert min(others) <= NEAR_BITS, "nothing joins a cluster that is not like it"


def test_equal_content_is_one_cluster_without_a_picture() -> None:
    number = clusters(["a", "b", "a", None, None], [None] * 5).tolist()
    assert number[0] == number[2]
    assert len(set(number)) == 4


# Blank and blurred -----------------------------------------------------------------------------


def test_a_blank_picture() -> None:
    empty = look(Image.new("RGB", (360, 360), (250, 225, 200)))
    found = quality.blank(np.array([40.0, empty.spread, np.nan]))
    assert list(found) == [1]
    assert found[1] == "brightness varies by 0.0 grey levels; below 4 counts as blank"


def test_blurred_cells_are_found_and_sharp_ones_are_not(
    cells: list[Image.Image], measured: list[Measurement]
) -> None:
    soft = [look(cell.filter(ImageFilter.GaussianBlur(6))) for cell in cells[:8]]
    sharpness = np.array([one.sharpness for one in (*measured, *soft)])
    found = quality.blurred(sharpness)
    assert sorted(found) == list(range(len(measured), len(sharpness)))
    assert "counts as blurred" in found[len(measured)]


def test_a_faint_cell_is_not_blurred(cells: list[Image.Image]) -> None:
    faint = look(ImageEnhance.Contrast(cells[0]).enhance(0.4), 95)
    assert faint.sharpness == pytest.approx(look(cells[0], 95).sharpness, rel=0.25)


@pytest.mark.parametrize("judge", [quality.blurred, quality.alien])
def test_a_few_pictures_are_not_judged(judge: object) -> None:
    values = np.array([1.0] * 10 + [1e-3, 1.9])
    assert judge(values) == {}  # type: ignore[operator]
    assert judge(np.full(30, np.nan)) == {}  # type: ignore[operator]


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=30), st.floats(1e-3, 1e3))
def test_robust_spread_scales(values: list[float], scale: float) -> None:
    centre, deviation = quality.robust(np.array([*values, np.nan]))
    scaled = quality.robust(np.array(values) * scale)
    assert scaled == pytest.approx((centre * scale, deviation * scale), rel=1e-9, abs=1e-9)


# Aliens ----------------------------------------------------------------------------------------


def test_the_unlike_are_found_among_cells(cells: list[Image.Image]) -> None:
    rng = np.random.default_rng(0)
    text = Image.new("RGB", (360, 360), "white")
    text.paste("black", (40, 40, 320, 60))
    strange = [
        Image.fromarray(rng.integers(0, 256, (360, 360, 3), np.uint8)),
        text,
        Image.fromarray(np.tile(np.arange(360) % 17 * 15, (360, 1)).astype(np.uint8)).convert(
            "RGB"
        ),
    ]
    pictures = np.stack([pixels(image) for image in (*cells, *strange)])
    features = Extractor()(pictures)
    assert features.dtype == np.float16
    assert np.linalg.norm(features.astype(np.float32), axis=1) == pytest.approx(1, abs=2e-3)
    keys = [str(i) for i in range(len(pictures))]
    far = distances(features, keys, features, keys)
    found = quality.alien(far)
    assert sorted(found) == list(range(len(cells), len(pictures)))
    assert "counts as alien" in found[len(cells)]


def test_features_do_not_depend_on_company(cells: list[Image.Image]) -> None:
    extractor = Extractor()
    pictures = np.stack([pixels(cell) for cell in cells[:5]])
    alone = np.concatenate([extractor(pictures[i : i + 1]) for i in range(5)])
    assert np.array_equal(alone, extractor(pictures))
    assert extractor(pictures[:0]).shape == (0, alone.shape[1])
    assert BACKBONE == "tf_efficientnet_lite0"


def test_nothing_vouches_for_itself() -> None:
    units = np.eye(4, dtype=np.float16)
    assert distances(units[:1], ["a"], units[:2], ["a", "b"]).tolist() == [1.0]
    assert distances(units[:1], ["c"], units[:2], ["a", "b"]).tolist() == [0.0]
    assert np.isnan(distances(units[:1], ["a"], units[:1], ["a"])).all()
