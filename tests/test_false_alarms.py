"""The limit that one in a hundred home pictures is above, from few and from many."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from bloodcells.false_alarms import FALSE_ALARMS, limit_for

Draw = Callable[[np.random.Generator, int], npt.NDArray[np.float64]]

SHAPES: dict[str, Draw] = {
    "normal, below 0": lambda rng, num: rng.normal(-30, 8, num),
    "skewed": lambda rng, num: rng.lognormal(-3, 0.5, num),
    "chi-squared": lambda rng, num: rng.chisquare(10, num),
}


def false_alarms(draw: Draw, num: int) -> float:
    """Return the mean share of others above the limits of 600 samples."""
    rng = np.random.default_rng(num)
    others = np.sort(draw(rng, 50_000))
    limits = [limit_for(draw(rng, num)) for _ in range(600)]
    return float(1 - (np.searchsorted(others, limits, side="right") / len(others)).mean())


@pytest.mark.parametrize("num", [99, 250, 721])
@pytest.mark.parametrize("shape", SHAPES)
def test_of_many_at_most_one_in_a_hundred_others_are_above(shape: str, num: int) -> None:
    """For order statistics the expected share is known exactly."""
    expected = int((num + 1) * FALSE_ALARMS) / (num + 1)
    assert false_alarms(SHAPES[shape], num) == pytest.approx(expected, abs=0.0015)


@pytest.mark.parametrize("num", [12, 24, 40, 92])
@pytest.mark.parametrize("shape", SHAPES)
def test_of_few_too_hardly_more_than_one_in_a_hundred(shape: str, num: int) -> None:
    """Where the quantile has 2 to 8 in a hundred above it."""
    assert 0.002 < false_alarms(SHAPES[shape], num) < 0.018


def test_the_limit_of_few_is_never_below_the_greatest() -> None:
    for seed in range(50):
        values = np.random.default_rng(seed).uniform(size=20)
        assert limit_for(values) >= values.max()


def test_many_have_a_limit_among_them() -> None:
    assert limit_for(np.arange(1000.0)[::-1]) == 990  # nine are above, of 1,001 ranks


def test_one_value_and_equal_values_are_their_own_limit() -> None:
    assert limit_for([0.25]) == 0.25
    assert limit_for([0.25] * 7) == 0.25
