"""Images of many requests in one batch: the same scores as in bulk, in order, within bounds."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.cells import CLASSES
from bloodcells.errors import ImageError
from bloodcells.imaging import content_hash, decode
from bloodcells.models.early_norm import statistics_of, to_text
from bloodcells.scoring import Scorer
from bloodcells.sites import SiteProfile
from bloodcells.synthetic import BALANCED, draw_slide
from bloodcells.verdicts import Outputs
from serve.batching import CPU_SIZES, Answer, Batcher, QueueFullError, ScoredImage
from serve.turns import Turns


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    return ModelBundle.load(shipped_bundle_uri())


@pytest.fixture(scope="module")
def scorer(bundle: ModelBundle) -> Scorer:
    return Scorer(bundle, num_threads=1, padded_sizes=CPU_SIZES)


@pytest.fixture(scope="module")
def cells() -> list[bytes]:
    return [image.data for image in draw_slide(BALANCED, 40, seed=3)]


@pytest.fixture
def batcher(scorer: Scorer) -> Iterator[Batcher]:
    batcher = Batcher(scorer, max_queued=100)
    yield batcher
    batcher.close()


class Gate:
    """Stands in front of a scorer and lets batches through when told to."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.bundle, self.device, self.seen = scorer.bundle, scorer.device, scorer.seen
        self.micro_batch = 8
        self.sizes: list[int] = []
        self.open = threading.Event()

    def outputs(self, pixels: npt.NDArray[np.uint8]) -> Outputs:
        self.sizes.append(len(pixels))
        assert self.open.wait(30)
        return self.scorer.outputs(pixels)


@pytest.fixture
def gate(scorer: Scorer) -> Iterator[tuple[Gate, Batcher]]:
    gate = Gate(scorer)
    batcher = Batcher(gate, max_queued=20)  # type: ignore[arg-type]
    yield gate, batcher
    gate.open.set()
    batcher.close()


def logits(answers: list[Answer]) -> npt.NDArray[np.float32]:
    assert all(isinstance(answer, ScoredImage) for answer in answers)
    return np.array([a.logits for a in answers if isinstance(a, ScoredImage)])


def test_a_cell_has_the_score_that_bulk_scoring_gives_it(
    bundle: ModelBundle, batcher: Batcher, cells: list[bytes]
) -> None:
    bulk = Scorer(bundle, num_threads=1)
    pixels = np.stack([decode(data, bundle.preprocess).pixels for data in cells])
    expected = bulk.outputs(pixels).logits

    async def ask() -> list[list[Answer]]:
        alone = [await batcher.score([data]) for data in cells[:3]]
        sizes = [batcher.score(cells[:n]) for n in (1, 2, 5, 7, 19, 40)]
        return [*alone, *await asyncio.gather(*sizes)]

    *alone, one, two, five, seven, nineteen, all_of_them = asyncio.run(ask())
    for k, answers in enumerate(alone):
        np.testing.assert_allclose(logits(answers)[0], expected[k], atol=1e-4)
    for answers in (one, two, five, seven, nineteen, all_of_them):
        np.testing.assert_allclose(logits(answers), expected[: len(answers)], atol=1e-4, rtol=0)
    first = all_of_them[0]
    assert isinstance(first, ScoredImage) and first.content_hash == content_hash(cells[0])


def test_requests_of_several_sites_meet_in_a_batch_and_keep_apart(
    gate: tuple[Gate, Batcher], scorer: Scorer, cells: list[bytes]
) -> None:
    door, batcher = gate
    moved = statistics_of(scorer.bundle.build()) * 1.3
    digest = scorer.bundle.digest
    far = scorer.at(SiteProfile(bundle_digest=digest, crop=1.2, statistics=to_text(moved)))
    near = scorer.at(SiteProfile(bundle_digest=digest, crop=1.5))

    async def ask() -> list[list[Answer]]:
        held = asyncio.create_task(batcher.score(cells[:1]))
        await until(lambda: door.sizes == [1])
        asked = [
            asyncio.create_task(batcher.score(cells[:3], each)) for each in (far, scorer, near)
        ]
        await until(lambda: batcher.num_waiting == 10)
        door.open.set()
        await held
        return await asyncio.gather(*asked)

    for each, answers in zip((far, scorer, near), asyncio.run(ask()), strict=True):
        pixels = np.stack([decode(data, each.seen).pixels for data in cells[:3]])
        np.testing.assert_allclose(logits(answers), each.outputs(pixels).logits, atol=1e-4)


def test_a_fault_stands_in_its_place(batcher: Batcher, cells: list[bytes]) -> None:
    answers = asyncio.run(batcher.score([cells[0], b"no image", cells[1], b""]))
    kinds = [isinstance(answer, ImageError) for answer in answers]
    assert kinds == [False, True, False, True]
    assert isinstance(answers[1], ImageError) and answers[1].reason == "undecodable"


def test_what_gathers_meanwhile_is_scored_together(
    gate: tuple[Gate, Batcher], cells: list[bytes]
) -> None:
    door, batcher = gate

    async def ask() -> None:
        first = asyncio.create_task(batcher.score([cells[0]]))
        await until(lambda: door.sizes == [1])
        rest = [asyncio.create_task(batcher.score([data])) for data in cells[1:12]]
        await until(lambda: batcher.num_waiting == 12)
        door.open.set()
        await asyncio.gather(first, *rest)

    asyncio.run(ask())
    assert door.sizes == [1, 8, 3]


def test_a_large_request_does_not_hold_up_a_single_cell(
    gate: tuple[Gate, Batcher], cells: list[bytes]
) -> None:
    door, batcher = gate
    done: list[str] = []

    async def named(name: str, images: list[bytes]) -> None:
        await batcher.score(images)
        done.append(name)

    async def ask() -> None:
        held = asyncio.create_task(named("first", cells[:1]))
        await until(lambda: door.sizes == [1])
        large = asyncio.create_task(named("large", cells[1:18]))
        await until(lambda: batcher.num_waiting == 18)
        single = asyncio.create_task(named("single", cells[20:21]))
        await until(lambda: batcher.num_waiting == 19)
        door.open.set()
        await asyncio.gather(held, large, single)

    asyncio.run(ask())
    assert done == ["first", "single", "large"]


def test_a_full_queue_says_when_to_come_again(
    gate: tuple[Gate, Batcher], cells: list[bytes]
) -> None:
    door, batcher = gate

    async def ask() -> QueueFullError:
        held = asyncio.create_task(batcher.score(cells[:1]))
        await until(lambda: door.sizes == [1])
        waiting = asyncio.create_task(batcher.score(cells[:15]))
        await until(lambda: batcher.num_waiting == 16)
        began = time.monotonic()
        with pytest.raises(QueueFullError) as caught:
            await batcher.score(cells[:6])
        assert time.monotonic() - began < 0.1
        fits = asyncio.create_task(batcher.score(cells[:5]))
        await until(lambda: batcher.num_waiting == 21)
        door.open.set()
        await asyncio.gather(held, waiting, fits)
        await until(lambda: batcher.num_waiting == 0)
        return caught.value

    assert asyncio.run(ask()).retry_after_s >= 1
    # The rate is known now: 100 images that wait, at 5 a second, are 20 s, then more.
    batcher._images_per_s, batcher._waiting, batcher._turns = 5.0, 100, Turns()
    told = []
    for _ in range(6):
        with pytest.raises(QueueFullError) as caught:
            batcher.require_room()
        told.append(caught.value.retry_after_s)
    batcher._waiting = 0
    assert told == [20, *[21] * 5]


def test_a_request_larger_than_the_queue_is_let_in_where_nothing_waits(
    batcher: Batcher, cells: list[bytes]
) -> None:
    small = Batcher(batcher.scorer, max_queued=5)
    assert len(asyncio.run(small.score(cells[:9]))) == 9
    small.close()


def test_whoever_went_away_is_not_scored_for(
    gate: tuple[Gate, Batcher], cells: list[bytes]
) -> None:
    door, batcher = gate

    async def ask() -> None:
        held = asyncio.create_task(batcher.score(cells[:1]))
        await until(lambda: door.sizes == [1])
        gone = asyncio.create_task(batcher.score(cells[:12]))
        await until(lambda: batcher.num_waiting == 13)
        gone.cancel()
        await asyncio.sleep(0)
        door.open.set()
        await held
        await batcher.score(cells[5:7])

    asyncio.run(ask())
    assert door.sizes == [1, 2] and batcher._waiting == 0


def test_what_waits_is_scored_before_the_end(
    gate: tuple[Gate, Batcher], cells: list[bytes]
) -> None:
    door, batcher = gate

    async def ask() -> list[Answer]:
        waiting = asyncio.create_task(batcher.score(cells[:10]))
        await until(lambda: bool(door.sizes))
        door.open.set()
        await asyncio.to_thread(batcher.close)
        with pytest.raises(RuntimeError, match="closed"):
            await batcher.score(cells[:1])
        return await waiting

    assert logits(asyncio.run(ask())).shape == (10, len(CLASSES))


def test_an_error_reaches_whoever_waits_and_the_thread_lives_on(
    gate: tuple[Gate, Batcher], cells: list[bytes]
) -> None:
    door, batcher = gate
    door.open.set()
    right = door.outputs

    def wrong(pixels: npt.NDArray[np.uint8]) -> Outputs:
        raise MemoryError("no room")

    door.outputs = wrong  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        asyncio.run(batcher.score(cells[:2]))
    door.outputs = right  # type: ignore[method-assign]
    assert len(asyncio.run(batcher.score(cells[:2]))) == 2
    batcher.require_alive()


async def until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
