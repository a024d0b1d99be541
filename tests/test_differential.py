"""Counts become shares, and intervals hold the truth as often as they say."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from bloodcells.cells import CLASSES, WHITE_CELLS
from bloodcells.differential import Differential, differential, per_hundred_white, unmix
from bloodcells.synthetic import DIFFERENTIALS

NUM_CLASSES = len(CLASSES)
WHITE = np.array([name in WHITE_CELLS for name in CLASSES])
ERYTHROBLAST, IG, LYMPHOCYTE, NEUTROPHIL, PLATELET = (
    CLASSES.index(name)
    for name in ("erythroblast", "immature_granulocyte", "lymphocyte", "neutrophil", "platelet")
)
VALIDATION = np.array([51, 131, 65, 122, 51, 60, 140, 99])
FAULTLESS = np.diag(VALIDATION)
ROUNDING = 1e-9


def error_rates(floor: float = 0.001) -> npt.NDArray[np.float64]:
    """Return P(predicted | true) of a classifier that is right on about 98 % of cells."""
    rates = np.full((NUM_CLASSES, NUM_CLASSES), floor)
    rates[IG, NEUTROPHIL] = rates[NEUTROPHIL, IG] = 0.015
    rates[LYMPHOCYTE, ERYTHROBLAST] = rates[ERYTHROBLAST, LYMPHOCYTE] = 0.008
    rates[CLASSES.index("monocyte"), IG] = 0.02
    np.fill_diagonal(rates, 0)
    np.fill_diagonal(rates, 1 - rates.sum(axis=1))
    return rates


def counts_of(**cells: int) -> npt.NDArray[np.int64]:
    return np.array([[cells.get(name, 0) for name in CLASSES]])


def holds(found: Differential, truth: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the share of slides whose interval holds the truth, by class."""
    inside = (found.low <= truth + ROUNDING) & (truth <= found.high + ROUNDING)
    return np.asarray(inside.mean(axis=0))


@pytest.mark.parametrize("mix_name", DIFFERENTIALS)
@pytest.mark.parametrize(
    ("num_cells", "is_new_set"),
    [(100, False), (200, True), (500, False)],
    ids=["100_cells", "200_cells_of_another_set", "500_cells"],
)
def test_intervals_hold_mix_and_own_composition(
    mix_name: str, num_cells: int, is_new_set: bool
) -> None:
    mix = np.array([DIFFERENTIALS[mix_name].get(name, 0.0) for name in CLASSES])
    truth, rates = per_hundred_white(mix[np.newaxis]), error_rates()
    rng = np.random.default_rng(num_cells)
    held, held_own = [], []
    for _ in range(50):
        validation = rng.multinomial(VALIDATION, rates)
        slide_rates = rates
        if is_new_set:
            slide_rates = rng.multinomial(VALIDATION, rates) / VALIDATION[:, np.newaxis]
        cells = rng.multinomial(num_cells, mix / mix.sum(), size=4)
        found = differential(rng.multinomial(cells, slide_rates).sum(axis=1), validation)
        held.append(holds(found, truth))
        held_own.append(holds(found, per_hundred_white(cells)))
    # 200 slides: at a true 95 %, chance takes a share below 90 % once in 300 times.
    assert np.mean(held, axis=0).min() >= 0.9
    assert np.mean(held_own, axis=0).min() >= 0.9
    assert np.mean(held) >= 0.95


def test_a_classifier_that_sees_left_shifts_everywhere_is_corrected() -> None:
    confusion = np.diag([100] * NUM_CLASSES)
    confusion[NEUTROPHIL] = 0
    confusion[NEUTROPHIL, [NEUTROPHIL, IG]] = 90, 10
    found = differential(counts_of(neutrophil=540, immature_granulocyte=60), confusion)
    assert found.percent[0, IG] == pytest.approx(10)
    assert found.estimate[0, IG] < 0.5
    assert found.low[0, IG] == 0
    assert found.estimate[0, NEUTROPHIL] > 99


def test_estimates_do_not_lean_to_the_mix_of_validation() -> None:
    rates = error_rates()
    validation = np.rint(rates * 20_000).astype(int)
    mix = np.array([0.01, 0.02, 0.0, 0.01, 0.90, 0.03, 0.03, 0.0])
    cells = np.rint(1_000_000 * mix @ rates).astype(int)[np.newaxis]
    np.testing.assert_allclose(unmix(cells, validation)[0], mix, atol=1e-3)
    np.testing.assert_allclose(differential(cells, validation).estimate[0], 100 * mix, atol=0.1)


def test_with_a_faultless_well_known_classifier_the_interval_is_clopper_pearson() -> None:
    counts = counts_of(
        basophil=1, eosinophil=5, lymphocyte=30, monocyte=7, neutrophil=57, platelet=9
    )
    found = differential(counts, np.diag([10_000_000] * NUM_CLASSES))
    k, total = counts[0], np.where(WHITE, 100, 100 + counts[0])
    low = np.where(k > 0, beta.ppf(0.025, np.maximum(k, 1), total - k + 1), 0)
    high = beta.ppf(0.975, k + 1, total - k)
    ratio = [np.where(WHITE, share, share / (1 - share)) for share in (low, high)]
    np.testing.assert_allclose(found.low[0], 100 * ratio[0], atol=0.1, rtol=0.12)
    np.testing.assert_allclose(found.high[0], 100 * ratio[1], atol=0.1, rtol=0.06)


def test_intervals_are_not_much_wider_than_a_faultless_classifiers() -> None:
    mix = np.array([DIFFERENTIALS["left_shift"].get(name, 0.0) for name in CLASSES])
    rng = np.random.default_rng(0)
    cells = rng.multinomial(100, mix / mix.sum(), size=40)
    called = rng.multinomial(cells, error_rates()).sum(axis=1)
    real = differential(called, rng.multinomial(VALIDATION, error_rates()))
    ideal = differential(cells, np.diag([10_000_000] * NUM_CLASSES))
    widths = [np.mean(found.high - found.low, axis=0) for found in (real, ideal)]
    assert (widths[0] < 1.35 * widths[1]).all()
    assert (widths[0] > widths[1]).mean() > 0.7


def test_a_class_that_was_not_seen_has_an_upper_bound_above_zero() -> None:
    found = differential(counts_of(neutrophil=70, lymphocyte=30), FAULTLESS)
    unseen = np.setdiff1d(np.arange(NUM_CLASSES), [NEUTROPHIL, LYMPHOCYTE])
    assert (found.low[0, unseen] == 0).all()
    assert (found.estimate[0, unseen] < 0.5).all()
    assert (found.high[0, unseen] > 3).all()  # the rule of three: about 3 / n, here 3.6 %


def test_fewer_validation_images_make_wider_intervals() -> None:
    counts = counts_of(neutrophil=300, lymphocyte=150, monocyte=40, immature_granulocyte=10)
    few, many = (
        differential(counts, np.rint(size * error_rates()).astype(int)) for size in (60, 6000)
    )
    assert few.high[0, IG] - few.low[0, IG] > many.high[0, IG] - many.low[0, IG]


def test_more_erythroblasts_than_white_cells_exceed_a_hundred() -> None:
    found = differential(counts_of(neutrophil=50, erythroblast=150), FAULTLESS)
    assert found.percent[0, ERYTHROBLAST] == pytest.approx(300)
    assert found.low[0, ERYTHROBLAST] > 200
    assert found.high[0, ERYTHROBLAST] > 300
    assert found.estimate[0, NEUTROPHIL] > 98


def test_a_slide_without_white_cells_has_no_differential() -> None:
    counts = np.concatenate([counts_of(platelet=50, erythroblast=3), counts_of()])
    found = differential(counts, FAULTLESS)
    for values in vars(found).values():
        assert np.isnan(values).all()


def test_no_slides_give_no_rows() -> None:
    found = differential(np.zeros((0, NUM_CLASSES), int), FAULTLESS)
    assert all(values.shape == (0, NUM_CLASSES) for values in vars(found).values())


def test_a_slide_does_not_depend_on_its_neighbours() -> None:
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 60, (12, NUM_CLASSES))
    together = differential(counts, FAULTLESS)
    alone = differential(counts[7:8], FAULTLESS)
    again = differential(counts, FAULTLESS)
    for name, values in vars(together).items():
        np.testing.assert_allclose(getattr(alone, name)[0], values[7], rtol=1e-9)
        np.testing.assert_array_equal(getattr(again, name), values)


def test_nothing_is_known_of_a_class_that_validation_never_saw() -> None:
    confusion = FAULTLESS.copy()
    confusion[IG] = 0
    found = differential(counts_of(neutrophil=60, immature_granulocyte=20), confusion)
    assert found.high[0, IG] > 60
    assert found.high[0, NEUTROPHIL] < 90


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 2000), min_size=NUM_CLASSES, max_size=NUM_CLASSES),
    confusion=st.lists(st.integers(0, 200), min_size=NUM_CLASSES**2, max_size=NUM_CLASSES**2),
)
def test_numbers_make_sense_for_any_classifier(counts: list[int], confusion: list[int]) -> None:
    found = differential(np.array([counts]), np.reshape(confusion, (NUM_CLASSES, NUM_CLASSES)))
    if not np.array(counts)[WHITE].any():
        assert np.isnan(found.estimate).all()
        return
    assert (found.low >= 0).all()
    assert (found.low <= found.estimate).all()
    assert (found.estimate <= found.high).all()
    assert (found.high[:, WHITE] <= 100 + ROUNDING).all()
    assert (found.high <= 100 * sum(counts) + ROUNDING).all()
    assert found.estimate[:, WHITE].sum() <= 100 + 1e-6


def test_thousands_of_slides_take_seconds() -> None:
    counts = np.random.default_rng(4).integers(0, 40, (100, NUM_CLASSES))
    start = time.process_time()
    differential(counts, FAULTLESS)
    # Measured: over 300 slides a second on one core of a busy machine.
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("counts", "confusion"),
    [
        (np.zeros((1, 7), int), FAULTLESS),
        (np.zeros(8, int), FAULTLESS),
        (np.full((1, 8), -1), FAULTLESS),
        (np.zeros((1, 8), int), FAULTLESS[:7]),
        (np.zeros((1, 8), int), -FAULTLESS),
    ],
)
def test_arrays_that_are_no_counts_are_refused(
    counts: npt.NDArray[np.int64], confusion: npt.NDArray[np.int64]
) -> None:
    with pytest.raises(ValueError, match="must be non-negative"):
        differential(counts, confusion)
