"""Shards on their way to the scorers: shared fairly, tried again a finite number of times, stopped.

And one scorer, without Ray: which model it uses, and what it publishes nowhere.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from bloodcells import storage
from bloodcells.accounting import PlannedShard
from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.errors import BundleError, RunIncompleteError
from bloodcells.loading import load_shard
from bloodcells.models.early_norm import statistics_of, to_text
from bloodcells.pipeline.attempts import MAX_ATTEMPTS
from bloodcells.pipeline.run_request import SHIPPED
from bloodcells.publish import ShardOutcome, part_uri, plan_bytes, read_planned
from bloodcells.records import Shard
from bloodcells.runs import Run, RunSettings
from bloodcells.scoring import Scorer, score_loaded
from bloodcells.sites import SiteProfile
from bloodcells.stores import open_store, plan_source
from bloodcells.synthetic import NORMAL, draw_slide, write_archive
from serve.archive_dispatch import Dispatcher, FairSlots
from serve.archive_model import model_of
from serve.archive_poke import poking
from serve.archive_scorer import MOST_SITES, ArchiveScorer, ShardTask


class Scorers:
    """Stands for Serve's handle: answers as it is told, and counts what is with it."""

    def __init__(self, answer: Callable[[ShardTask], ShardOutcome]) -> None:
        self.answer = answer
        self.asked: list[ShardTask] = []
        self.most = 0
        self._here = 0
        self.score = self

    async def remote(self, task: ShardTask) -> ShardOutcome:
        self.asked.append(task)
        self._here += 1
        self.most = max(self.most, self._here)
        try:
            await asyncio.sleep(0.01)
            return self.answer(task)
        finally:
            self._here -= 1


def done(task: ShardTask) -> ShardOutcome:
    return ShardOutcome(shard_id=task.planned.shard_id, num_scored=1)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def a_run(folder: str = "/run", /, **bundle: str) -> Run:
    settings = RunSettings(
        stores=(),
        bundle_digest=bundle.get("digest", "sha256:x"),
        site_digest=None,
        precision="float32",
        micro_batch=32,
        compiled=False,
        shard_size=1,
        slide_pattern=None,
        since=None,
    )
    return Run(uri=folder, settings=settings, bundle=bundle)


def wave(count: int) -> list[PlannedShard]:
    return [
        PlannedShard(shard_id=f"{k}", plan_uri="/p", plan_row=k, num_images=1) for k in range(count)
    ]


def never() -> None:
    pass


def test_all_shards_come_back_and_few_are_on_their_way(loop: asyncio.AbstractEventLoop) -> None:
    scorers = Scorers(done)
    dispatcher = Dispatcher(scorers, loop, FairSlots(6))
    found = list(dispatcher.score(a_run(), wave(50), bundle_uri="b", check=never))
    assert sorted(int(outcome.shard_id) for outcome in found) == list(range(50))
    assert scorers.most == 6


def test_a_shard_whose_scorer_dies_is_tried_again_a_finite_number_of_times(
    loop: asyncio.AbstractEventLoop,
) -> None:
    def answer(task: ShardTask) -> ShardOutcome:
        if task.planned.shard_id == "3" or (task.planned.shard_id == "5" and task.attempt < 3):
            raise ActorDiedError()
        return done(task)

    scorers = Scorers(answer)
    dispatcher = Dispatcher(scorers, loop, FairSlots(4))
    found = {
        outcome.shard_id: outcome
        for outcome in dispatcher.score(a_run(), wave(8), bundle_uri="b", check=never)
    }
    assert len(found) == 8
    assert "ended its process 5 times" in found["3"].error
    assert not any(outcome.error for shard_id, outcome in found.items() if shard_id != "3")
    tries = Counter(task.planned.shard_id for task in scorers.asked)
    assert (tries["3"], tries["5"], tries["0"]) == (MAX_ATTEMPTS, 3, 1)
    assert [task.attempt for task in scorers.asked if task.planned.shard_id == "5"] == [1, 2, 3]


def test_a_stop_sends_nothing_more_and_counts_what_was_on_its_way(
    loop: asyncio.AbstractEventLoop,
) -> None:
    scorers = Scorers(done)
    found: list[ShardOutcome] = []

    def check() -> None:
        if len(found) >= 10:
            raise RunIncompleteError("stop")

    with pytest.raises(RunIncompleteError, match="stop"):
        for outcome in Dispatcher(scorers, loop, FairSlots(4)).score(
            a_run(), wave(1000), bundle_uri="b", check=check
        ):
            found.append(outcome)
    assert len(found) == len(scorers.asked) < 20


def test_a_shard_that_fails_gives_its_slot_back(loop: asyncio.AbstractEventLoop) -> None:
    """What a scorer should never raise ends the run, and holds up no other."""

    def answer(task: ShardTask) -> ShardOutcome:
        raise ZeroDivisionError

    slots = FairSlots(2)
    with pytest.raises(ZeroDivisionError):
        list(
            Dispatcher(Scorers(answer), loop, slots).score(
                a_run(), wave(9), bundle_uri="b", check=never
            )
        )
    found = Dispatcher(Scorers(done), loop, slots).score(
        a_run(), wave(9), bundle_uri="b", check=never
    )
    assert len(list(found)) == 9


def test_runs_share_the_slots() -> None:
    slots = FairSlots(6)
    assert [slots.take("a") for _ in range(7)] == [True] * 6 + [False]
    assert slots.take("b"), "a newcomer gets one at once"
    assert not slots.take("b"), "and more when the first gives some back"
    for _ in range(4):
        slots.give_back("a")
    assert [slots.take("b") for _ in range(3)] == [True, True, False]
    assert slots.take("a")
    assert not slots.take("a"), "half is its share"
    slots.leave("b")
    for _ in range(3):
        slots.give_back("b")
    assert [slots.take("a") for _ in range(4)] == [True, True, True, False]


@pytest.fixture(scope="module")
def scorer() -> ArchiveScorer:
    return ArchiveScorer("", "cpu")


@pytest.fixture
def task(tmp_path: Path, scorer: ArchiveScorer) -> ShardTask:
    """A run folder with one shard of four cells."""
    write_archive(tmp_path / "slide.tar", list(draw_slide(NORMAL, 4, seed=1)), "tar")
    (source,) = open_store(str(tmp_path / "slide.tar")).sources()
    shard = next(item for item in plan_source(source) if isinstance(item, Shard))
    run = a_run(str(tmp_path / "run"))
    run.save()
    plan_uri = f"{run.uri}/plan/a.parquet"
    storage.put(plan_uri, plan_bytes([shard]))
    return ShardTask(
        planned=PlannedShard(shard_id=shard.shard_id, plan_uri=plan_uri, plan_row=0, num_images=4),
        run_uri=run.uri,
        run_id=run.run_id,
        bundle_uri=shipped_bundle_uri(),
        bundle_digest=ModelBundle.load(shipped_bundle_uri()).digest,
        site=None,
        attempt=1,
    )


def score(scorer: ArchiveScorer, task: ShardTask) -> ShardOutcome:
    return asyncio.run(scorer.score(task))


def digests(task: ShardTask) -> set[str]:
    part = pq.read_table(part_uri(task.run_uri, "scores", task.planned.shard_id))
    return set(part["bundle_digest"].to_pylist())


def test_a_run_goes_on_with_the_model_it_was_begun_with(
    scorer: ArchiveScorer, task: ShardTask, tmp_path: Path
) -> None:
    assert score(scorer, task).num_scored == 4
    assert digests(task) == {task.bundle_digest}
    shipped = ModelBundle.load(shipped_bundle_uri())
    other = dataclasses.replace(shipped, facts={**shipped.facts, "note": "another"})
    other.save(str(tmp_path / "old"))
    pinned = f"{tmp_path / 'old'}@{other.digest}"
    old = dataclasses.replace(task, bundle_uri=pinned, bundle_digest=other.digest)
    assert score(scorer, old).num_scored == 4
    assert digests(task) == {other.digest}
    assert score(scorer, task).num_scored == 4
    assert digests(task) == {task.bundle_digest}
    assert model_of(a_run(uri=pinned, digest=other.digest))[0].digest == other.digest
    assert model_of(a_run(uri=SHIPPED, digest=shipped.digest))[1] == shipped_bundle_uri()


def test_runs_of_many_sites_are_scored_each_by_its_own_network(
    scorer: ArchiveScorer, task: ShardTask
) -> None:
    bundle = ModelBundle.load(shipped_bundle_uri())
    home = statistics_of(bundle.build())
    shard = read_planned(task.planned.plan_uri, task.planned.plan_row)
    for factor in (1.0, *np.linspace(1.1, 1.6, MOST_SITES), 1.0):
        site = SiteProfile(bundle_digest=bundle.digest, statistics=to_text(home * factor))
        assert score(scorer, dataclasses.replace(task, site=site)).num_scored == 4
        there = Scorer(bundle, site=site, num_threads=1)
        expected = score_loaded(load_shard(shard, there.seen), there)
        found = pq.read_table(part_uri(task.run_uri, "scores", task.planned.shard_id))
        assert set(found["site_digest"].to_pylist()) == {site.digest}
        np.testing.assert_allclose(found["prob_neutrophil"], expected["prob_neutrophil"], atol=1e-6)
        assert len(scorer._at_sites) <= MOST_SITES


def test_a_model_that_is_gone_ends_the_run_and_not_the_scorer(
    scorer: ArchiveScorer, task: ShardTask, tmp_path: Path
) -> None:
    digest = f"sha256:{'0' * 64}"
    for uri in (f"{tmp_path / 'gone'}@{digest}", f"{shipped_bundle_uri()}@{digest}"):
        outcome = score(scorer, dataclasses.replace(task, bundle_uri=uri, bundle_digest=digest))
        assert outcome.is_fatal and outcome.error
    with pytest.raises(BundleError, match="no longer where it was"):
        model_of(a_run(uri=str(tmp_path / "gone"), digest=digest))
    wrong = dataclasses.replace(task, bundle_digest=digest)
    assert "was begun with" in score(scorer, wrong).error
    assert score(scorer, task).num_scored == 4


def test_a_folder_that_is_another_runs_by_now_gets_nothing(
    scorer: ArchiveScorer, task: ShardTask
) -> None:
    outcome = score(scorer, dataclasses.replace(task, run_id="an earlier one"))
    assert outcome.is_fatal
    assert "started anew" in outcome.error
    assert not (Path(task.run_uri) / "scores").exists()


def test_a_suspect_shard_gives_the_same_rows(scorer: ArchiveScorer, task: ShardTask) -> None:
    score(scorer, task)
    part = Path(part_uri(task.run_uri, "scores", task.planned.shard_id))
    before = part.read_bytes()
    score(scorer, dataclasses.replace(task, attempt=3))
    assert part.read_bytes() == before


def test_an_unreachable_store_is_no_fault_of_the_data(
    scorer: ArchiveScorer, task: ShardTask, tmp_path: Path
) -> None:
    gone = dataclasses.replace(task.planned, plan_uri=f"{tmp_path}/nowhere.parquet")
    outcome = score(scorer, dataclasses.replace(task, planned=gone))
    assert outcome.error and not outcome.is_fatal


@pytest.mark.parametrize("error", [ActorDiedError(), BackPressureError(1, 1)])
def test_a_keeper_that_cannot_be_told_is_no_error(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    class Poke:
        async def remote(self) -> None:
            raise error

    with caplog.at_level(logging.WARNING, "ray.serve.bloodcells"):
        asyncio.run(poking(SimpleNamespace(poke=Poke()))())
    assert type(error).__name__ in caplog.text
