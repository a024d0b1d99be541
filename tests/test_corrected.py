"""What is said of slides that a person has seen in part holds, however the cells were chosen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binomtest

from bloodcells.cells import CLASSES, WHITE_CELLS
from bloodcells.corrected import corrected_differential
from bloodcells.differential import differential

NUM = len(CLASSES)
IG, NEUTROPHIL = CLASSES.index("immature_granulocyte"), CLASSES.index("neutrophil")
NONE = np.zeros((1, NUM), np.int64)
RATES = 0.93 * np.eye(NUM) + 0.07 / (NUM - 1) * (1 - np.eye(NUM))
CONFUSION = np.round(400 * RATES).astype(int)
MIX = np.array([0.01, 0.03, 0.05, 0.02, 0.27, 0.06, 0.5, 0.06])
WHITE = np.array([name in WHITE_CELLS for name in CLASSES])
PARAMETER = 100 * MIX / MIX[WHITE].sum()


def test_with_nothing_seen_it_is_the_differential() -> None:
    counts = np.array([[3, 10, 4, 6, 70, 15, 110, 8]])
    plain = differential(counts, CONFUSION)
    found = corrected_differential(counts, np.zeros((1, NUM, NUM), int), NONE, CONFUSION)
    for name in ("percent", "estimate", "low", "high"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))


def test_one_cell_seen_moves_the_estimate_little() -> None:
    counts = np.array([[3, 10, 4, 6, 70, 15, 110, 8]])
    seen = np.zeros((1, NUM, NUM), int)
    seen[0, NEUTROPHIL, NEUTROPHIL] = 1
    unseen = counts - seen.sum(axis=1)
    found = corrected_differential(unseen, seen, NONE, CONFUSION)
    plain = differential(counts, CONFUSION)
    np.testing.assert_allclose(found.estimate, plain.estimate, atol=0.2)


def test_with_everything_seen_only_the_sampling_is_uncertain() -> None:
    seen = np.zeros((1, NUM, NUM), int)
    truth = np.array([2, 11, 5, 9, 61, 14, 102, 7])
    seen[0, :, NEUTROPHIL] = truth  # the classifier knows nothing, and it does not matter
    found = corrected_differential(NONE, seen, NONE, CONFUSION)
    np.testing.assert_allclose(found.estimate, found.percent)
    num_white = int(truth[WHITE].sum())
    for place, name in enumerate(CLASSES):
        whites = num_white if name in WHITE_CELLS else num_white + truth[place]
        ends = binomtest(int(truth[place]), int(whites)).proportion_ci(0.95, "exact")
        low, high = ends.low, ends.high
        if name not in WHITE_CELLS:
            low, high = low / (1 - low), high / (1 - high)
        assert found.low[0, place] == pytest.approx(100 * low)
        assert found.high[0, place] == pytest.approx(100 * high)


def test_errors_that_people_found_are_not_expected_again_in_the_rest() -> None:
    """All errors looked at and mended: the left shift among the rest is real and must stay."""
    called = np.zeros(NUM, int)
    called[[NEUTROPHIL, IG]] = 900, 100
    confusion = np.diag([1000] * NUM)
    confusion[NEUTROPHIL, [NEUTROPHIL, IG]] = 950, 50
    seen = np.zeros((1, NUM, NUM), int)
    seen[0, NEUTROPHIL, IG] = 47
    unseen = called - seen[0].sum(axis=0)
    found = corrected_differential(unseen[None], seen, NONE, confusion)
    assert found.percent[0, IG] == pytest.approx(5.3)
    assert found.estimate[0, IG] == pytest.approx(5.3, abs=0.3)
    alone = differential(unseen[None], confusion).estimate[0, IG]
    assert alone < 1, "what the rest corrected by itself would say: the left shift is gone"


def test_a_slide_without_white_cells_has_no_differential() -> None:
    platelets = NONE.copy()
    platelets[0, -1] = 20
    found = corrected_differential(platelets, np.zeros((1, NUM, NUM), int), NONE, CONFUSION)
    for array in (found.percent, found.estimate, found.low, found.high):
        assert np.isnan(array).all()


def test_a_person_may_find_the_only_white_cells() -> None:
    seen = np.zeros((1, NUM, NUM), int)
    seen[0, NEUTROPHIL, -1] = 3
    platelets = NONE.copy()
    platelets[0, -1] = 17
    found = corrected_differential(platelets, seen, NONE, CONFUSION)
    assert found.percent[0, NEUTROPHIL] == 100
    assert np.isfinite(found.low).all()
    assert np.isfinite(found.high).all()
    assert (found.low <= found.estimate).all()
    assert (found.estimate <= found.high).all()


@pytest.mark.parametrize("share", [0.1, 0.6, 0.97])
@pytest.mark.parametrize("choice", ["errors first", "right ones first", "at random"])
def test_the_intervals_hold_the_truth_however_cells_were_chosen(choice: str, share: float) -> None:
    """The mix that slides were drawn from lies in the intervals of each class in 93 % and more."""
    rng = np.random.default_rng([int(100 * share), len(choice)])
    num_slides, num_cells = 150, 200
    unseen = np.zeros((num_slides, NUM), int)
    seen = np.zeros((num_slides, NUM, NUM), int)
    order: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "errors first": lambda wrong: -wrong.astype(float),
        "right ones first": lambda wrong: wrong.astype(float),
        "at random": lambda wrong: np.zeros(len(wrong)),
    }
    for slide in range(num_slides):
        truth = rng.choice(NUM, num_cells, p=MIX)
        called = np.array([rng.choice(NUM, p=RATES[t]) for t in truth])
        ranks = np.argsort(order[choice](truth != called) + 0.1 * rng.random(num_cells))
        looked, rest = np.split(ranks, [round(share * num_cells)])
        np.add.at(seen[slide], (truth[looked], called[looked]), 1)
        np.add.at(unseen[slide], called[rest], 1)
    found = corrected_differential(unseen, seen, np.zeros_like(unseen), CONFUSION)
    held = (found.low <= PARAMETER) & (found.high >= PARAMETER)
    assert held.mean() >= 0.95
    assert held.mean(axis=0).min() >= 0.9, dict(zip(CLASSES, held.mean(axis=0), strict=True))
    error = np.abs(found.estimate - PARAMETER)[:, WHITE].mean()
    assert error < 2.2


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="seen must be"):
        corrected_differential(NONE, NONE, NONE, CONFUSION)
    with pytest.raises(ValueError, match="joined must be"):
        corrected_differential(NONE, np.zeros((1, NUM, NUM), int), NONE - 1, CONFUSION)


def test_where_some_is_seen_the_interval_holds_the_machines() -> None:
    """Unless so few are unseen that their worst case is narrower."""
    seen = np.zeros((1, NUM, NUM), int)
    seen[0, IG, NEUTROPHIL], seen[0, NEUTROPHIL, IG] = 1, 3
    unseen = np.array([[0, 0, 0, 0, 38, 0, 58, 9]])
    own = differential(unseen + seen.sum(axis=1), CONFUSION)
    found = corrected_differential(unseen, seen, NONE, CONFUSION)
    white = slice(4, 7)  # that there is an immature granulocyte at all is known by now
    assert (found.low <= own.low + 1e-9)[0, white].all()
    assert (found.high >= own.high - 1e-9)[0, white].all()
    assert (found.low <= found.percent).all()
    assert (found.percent <= found.high).all()


def test_of_white_cells_the_estimates_add_up() -> None:
    rng = np.random.default_rng(7)
    unseen, seen = rng.integers(0, 30, (20, NUM)), rng.integers(0, 3, (20, NUM, NUM))
    found = corrected_differential(unseen, seen, rng.integers(0, 3, (20, NUM)), CONFUSION)
    np.testing.assert_allclose(found.estimate[:, WHITE].sum(axis=1), 100)
    assert (found.low <= found.estimate).all()
    assert (found.estimate <= found.high).all()
