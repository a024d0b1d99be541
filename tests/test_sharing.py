"""How many scorers a run may have, alone and beside others."""

from __future__ import annotations

import pytest

from bloodcells.pipeline import sharing
from bloodcells.pipeline.sharing import Room


def test_a_run_alone_has_all_the_room_within_its_bounds() -> None:
    assert Room(lambda: 8).take() == 8
    assert Room(lambda: 8, at_most=3).take() == 3
    assert Room(lambda: 0).take() == 1
    assert Room(lambda: 2, at_least=4).take() == 4
    assert not Room(lambda: 8).has_changed()


def test_runs_share_equally_and_regroup(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "ASK_EVERY_S", 0.0)
    monkeypatch.setattr(sharing, "SETTLE_S", 0.0)
    first, second = (Room(lambda: 8, is_shared=True) for _ in range(2))
    assert first.take() == 8
    assert not first.has_changed()
    assert second.take() == 4
    assert first.has_changed()
    assert first.take() == 4
    second.leave()
    assert first.has_changed()
    assert first.take() == 8
    first.leave()  # the last one: the registry goes, and comes back when it is asked for
    third = Room(lambda: 8, is_shared=True)
    assert third.take() == 8
    third.leave()


def test_nodes_that_join_are_room_too(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "ASK_EVERY_S", 0.0)
    capacity = [2]
    room = Room(lambda: capacity[0], is_shared=True)
    assert room.take() == 2
    capacity[0] = 6
    assert not room.has_changed(), "a run regroups no sooner than its scorers have started"
    monkeypatch.setattr(sharing, "SETTLE_S", 0.0)
    assert room.has_changed()
    assert room.take() == 6
    room.leave()
