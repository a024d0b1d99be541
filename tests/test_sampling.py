"""The manifest of an epoch: agreed steps, every planned image shown once, whatever the ranks."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bloodcells.training.sampling import images_per_epoch, own_rows, plan_epoch

counts_a_class = st.lists(st.integers(1, 40), min_size=2, max_size=5)


@given(counts_a_class, st.integers(1, 4), st.integers(2, 32), st.floats(0, 1))
def test_the_ranks_share_every_step_and_nothing_is_left_out(
    counts: list[int], world_size: int, batch_size: int, balance: float
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    plan = plan_epoch(labels, balance=balance, batch_size=batch_size, seed=1, epoch=2)
    shown = images_per_epoch(np.array(counts), balance)
    assert len(plan.rows) == shown.sum()
    positions = [
        plan.of_rank(step, rank, world_size)
        for step in range(plan.num_steps)
        for rank in range(world_size)
    ]
    assert np.array_equal(np.concatenate(positions), np.arange(len(plan.rows)))
    sizes = [plan.step_size(step) for step in range(plan.num_steps)]
    assert max(sizes) - min(sizes) <= 1
    used = np.bincount(plan.rows, minlength=len(labels))
    for label, (num, wanted) in enumerate(zip(counts, shown, strict=True)):
        own = used[labels == label]
        assert own.sum() == wanted
        assert own.max() - own.min() <= 1
        assert own.max() <= -(-wanted // num)


@given(counts_a_class, st.integers(0, 5))
def test_repeats_of_an_image_are_told_apart(counts: list[int], epoch: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    plan = plan_epoch(labels, balance=1, batch_size=8, seed=0, epoch=epoch)
    pairs = set(zip(plan.rows.tolist(), plan.occurrence.tolist(), strict=True))
    assert len(pairs) == len(plan.rows)


def test_balance() -> None:
    counts = np.array([100, 25])
    assert images_per_epoch(counts, 0).tolist() == [100, 25]
    assert images_per_epoch(counts, 0.5).tolist() == [100, 50]
    assert images_per_epoch(counts, 1).tolist() == [100, 100]


def test_epochs_differ_and_seeds_repeat() -> None:
    labels = np.repeat([0, 1], 50)

    def rows(seed: int, epoch: int) -> list[int]:
        return plan_epoch(labels, balance=0, batch_size=10, seed=seed, epoch=epoch).rows.tolist()

    assert rows(1, 0) == rows(1, 0)
    assert rows(1, 0) != rows(1, 1)
    assert rows(1, 0) != rows(2, 0)
    assert sorted(rows(1, 0)) == list(range(100))


def test_fewer_images_than_a_batch_are_one_step() -> None:
    plan = plan_epoch(np.array([0, 1, 1]), balance=0, batch_size=64, seed=0, epoch=0)
    assert plan.num_steps == 1
    assert sorted(plan.rows.tolist()) == [0, 1, 2]


@given(st.integers(0, 50), st.integers(1, 5))
def test_every_validation_row_is_on_exactly_one_rank(num_rows: int, world_size: int) -> None:
    rows = np.concatenate([own_rows(num_rows, rank, world_size) for rank in range(world_size)])
    assert sorted(rows.tolist()) == list(range(num_rows))
