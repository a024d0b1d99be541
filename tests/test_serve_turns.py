"""When clients that were turned away are told to come again."""

from __future__ import annotations

from serve.turns import LONGEST_S, Turns


def test_each_is_told_to_come_after_those_before() -> None:
    turns = Turns(clock=lambda: 0.0)
    told = [turns.next(1, waiting=64, images_per_s=64) for _ in range(64 * 3)]
    assert told[0] == 1 and told == sorted(told)
    assert [told.count(seconds) for seconds in (2, 3, 4)] == [64, 64, 63]


def test_nobody_waits_for_turns_that_are_over() -> None:
    now = [0.0]
    turns = Turns(clock=lambda: now[0])
    for _ in range(100):
        turns.next(1, waiting=10, images_per_s=10)
    now[0] = 5.0
    assert turns.next(1, waiting=10, images_per_s=10) == 1 + 5
    now[0] = 60.0
    assert turns.next(1, waiting=10, images_per_s=10) == 1


def test_nobody_waits_longer_than_makes_sense() -> None:
    turns = Turns(clock=lambda: 0.0)
    for _ in range(10_000):
        turns.next(1, waiting=10, images_per_s=10)
    assert turns.next(1, waiting=10, images_per_s=10) == LONGEST_S
    assert Turns(clock=lambda: 0.0).next(1, waiting=1, images_per_s=1e9) == 1
