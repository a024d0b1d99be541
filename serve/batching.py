"""Images from many requests, scored together: a bounded queue and the threads that empty it.

A thread takes what waits, up to a batch, decodes and scores it; while it works the next batch
gathers by itself, so that nobody waits for a timer and a lone request is scored alone. Images are
taken from the waiting requests in turn: a request of hundreds does not hold up a single cell. Knows
nothing of HTTP.

The road is that of bulk scoring: ``imaging.decode_batch`` with the bundle's ``Preprocess``, as a
site's profile has it seen, then ``scoring.Scorer``.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bloodcells.errors import ImageError
from bloodcells.imaging import Picture, content_hash, decode_batch
from bloodcells.scoring import Scorer
from serve.standing_back import lower_thread
from serve.turns import Turns

CPU_SIZES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28)
"""Sizes that a batch is padded to on a CPU, beside the largest. A lone image in a batch of 32 would
take 16 times as long as alone."""

GPU_SIZES: Final = (1, 8, 32, 128)

NICENESS: Final = 5
"""Of the scoring thread where it shares its core with the event loop: reading and answering go
first, so that batches are full before they are scored and a refusal need not wait for the model."""

DRAIN_S: Final = 30.0
STUCK_S: Final = 120.0
"""Longest that a batch may take. The largest images that are allowed decode in a few seconds."""

_MEMORY: Final = 0.9
"""Weight of what was known of the rate before, at each batch."""


class QueueFullError(Exception):
    """The queue has no room for more images.

    Attributes:
        retry_after_s: when there should be, from the queue's length, those who were told to come
            before, and the measured rate.
    """

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, kw_only=True)
class ScoredImage:
    """What became of one image.

    Attributes:
        content_hash: sha256 of the bytes.
        picture: its pixels and size.
        logits: ``float32 (8,)``, in the order of ``CLASSES``.
        strangeness: how unlike the training data it is.
        novelty: how unlike each of its cell types.
    """

    content_hash: str
    picture: Picture
    logits: npt.NDArray[np.float32]
    strangeness: float
    novelty: float


Answer = ScoredImage | ImageError


class _Job:
    """One request's images on their way through the queue."""

    def __init__(self, images: Sequence[bytes], scorer: Scorer) -> None:
        self.images = images
        self.scorer = scorer
        self.next = 0
        self.answers: list[Answer | None] = [None] * len(images)
        self.unanswered = len(images)
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[list[Answer]] = self.loop.create_future()

    def is_wanted(self) -> bool:
        return not self.done.done()

    def finish(self, error: BaseException | None = None) -> None:
        """Hand the answers over, in the event loop of whoever waits for them."""

        def deliver() -> None:
            if self.done.done():
                return
            if error is not None:
                self.done.set_exception(error)
            else:
                self.done.set_result([answer for answer in self.answers if answer is not None])

        with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(deliver)


class Batcher:
    """Scores images of concurrent requests in batches.

    Args:
        scorer: the model; used by one thread at a time.
        max_queued: most images that wait.
        decode_threads: threads that decode one batch.
    """

    def __init__(self, scorer: Scorer, *, max_queued: int, decode_threads: int = 1) -> None:
        self.scorer = scorer
        self.max_queued = max_queued
        self.decode_threads = decode_threads
        self._jobs: deque[_Job] = deque()
        self._waiting = 0
        self._in_work = 0
        self._images_per_s = 0.0
        self._turns = Turns()
        self._began = time.monotonic()
        self._changed = threading.Condition()
        self._is_open = True
        self._model = threading.Lock()
        # Two where a GPU scores: one batch is decoded meanwhile. One where both need the same core.
        num_threads = 2 if scorer.device == "cuda" else 1
        self._scoring = ThreadPoolExecutor(
            num_threads,
            thread_name_prefix="score",
            initializer=_give_way,
            initargs=(scorer.device,),
        )
        self._threads = [
            threading.Thread(target=self._work, name=f"batch-{number}", daemon=True)
            for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_waiting(self) -> int:
        """Images that wait or are being scored."""
        with self._changed:  # between the two while a batch is taken, they are in neither
            return self._waiting + self._in_work

    @property
    def images_per_s(self) -> float:
        """Images scored per second while there was work, of late; 0 before the first."""
        return self._images_per_s

    def require_room(self, num_images: int = 1) -> None:
        """Refuse images that the queue has no room for.

        A request larger than the whole queue is let in where nothing waits.

        Raises:
            QueueFullError: says when to come again.
        """
        waiting = self._waiting
        if waiting and waiting + num_images > self.max_queued:
            raise QueueFullError(
                self._turns.next(
                    num_images, waiting=self.num_waiting, images_per_s=self._images_per_s or 1.0
                )
            )

    async def score(self, images: Sequence[bytes], scorer: Scorer | None = None) -> list[Answer]:
        """Score encoded images; a fault stands in its image's place.

        Args:
            images: encoded.
            scorer: this batcher's one, for some site; by default as it is.

        Raises:
            QueueFullError: there is no room.
            RuntimeError: the batcher was closed.
        """
        if not images:
            return []
        job = _Job(images, scorer or self.scorer)
        with self._changed:
            if not self._is_open:
                raise RuntimeError("the batcher is closed")
            self.require_room(len(images))
            self._jobs.append(job)
            self._waiting += len(images)
            self._changed.notify()
        return await job.done

    def require_alive(self) -> None:
        """Make sure that the threads work.

        Raises:
            RuntimeError: a thread has ended, or a batch takes longer than ``STUCK_S``.
        """
        if not all(thread.is_alive() for thread in self._threads):
            raise RuntimeError("a scoring thread has ended")
        if self._in_work and time.monotonic() - self._began > STUCK_S:
            raise RuntimeError(f"a batch has been in work for more than {STUCK_S:g} s")

    def close(self) -> None:
        """Score what waits, then end the threads."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(DRAIN_S)
        self._scoring.shutdown(wait=False)

    def _work(self) -> None:
        """Have batches scored one after the other, until there are no more."""
        while batch := self._next_batch():
            self._began = began = time.monotonic()
            error = self._scoring.submit(self._score, batch).exception()
            if error is not None:  # those who wait must hear of it
                for job in {job for job, _ in batch}:
                    job.finish(error)
            self._note(len(batch), time.monotonic() - began)

    def _next_batch(self) -> list[tuple[_Job, int]]:
        """Wait for images and take up to a batch of them; empty once closed and drained."""
        with self._changed:
            while True:
                while not self._jobs and self._is_open:
                    self._changed.wait()
                if not self._jobs:
                    return []
                if batch := self._taken():
                    self._in_work += len(batch)
                    return batch

    def _taken(self) -> list[tuple[_Job, int]]:
        """Take images from the waiting requests in turn."""
        batch: list[tuple[_Job, int]] = []
        while self._jobs and len(batch) < self.scorer.micro_batch:
            job = self._jobs.popleft()
            if not job.is_wanted():  # its client has gone
                self._waiting -= len(job.images) - job.next
                continue
            batch.append((job, job.next))
            job.next += 1
            self._waiting -= 1
            if job.next < len(job.images):
                self._jobs.append(job)
        return batch

    def _score(self, batch: list[tuple[_Job, int]]) -> None:
        """Score a batch, the images of each site by themselves."""
        places: dict[Scorer, list[int]] = {}
        for number, (job, _) in enumerate(batch):
            places.setdefault(job.scorer, []).append(number)
        for scorer, numbers in places.items():
            self._score_with(scorer, [batch[number] for number in numbers])

    def _score_with(self, scorer: Scorer, batch: list[tuple[_Job, int]]) -> None:
        images = [job.images[place] for job, place in batch]
        pictures = decode_batch(images, scorer.seen, num_threads=self.decode_threads)
        good = [picture.pixels for picture in pictures if isinstance(picture, Picture)]
        if good:
            with self._model:
                rows = zip(*scorer.outputs(np.stack(good)), strict=True)
        for (job, place), picture in zip(batch, pictures, strict=True):
            if isinstance(picture, Picture):
                logits, strangeness, novelty = next(rows)
                job.answers[place] = ScoredImage(
                    content_hash=content_hash(job.images[place]),
                    picture=picture,
                    logits=logits,
                    strangeness=float(strangeness),
                    novelty=float(novelty),
                )
            else:
                job.answers[place] = picture
            self._answered(job)

    def _answered(self, job: _Job) -> None:
        with self._changed:
            job.unanswered -= 1
            is_done = job.unanswered == 0
        if is_done:
            job.finish()

    def _note(self, num_images: int, seconds: float) -> None:
        with self._changed:
            self._in_work -= num_images
            rate = num_images * len(self._threads) / max(seconds, 1e-6)
            known = self._images_per_s
            self._images_per_s = _MEMORY * known + (1 - _MEMORY) * rate if known else rate


def _give_way(device: str) -> None:
    """Let the event loop go first where it shares the core."""
    if device == "cpu":
        lower_thread(NICENESS)
