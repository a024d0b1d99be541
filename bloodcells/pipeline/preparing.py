"""Labelled stores to a manifest on a Ray cluster: one task lists a source, one reads a shard.

Each image is read and decoded once. Features stay in the object store (2.5 kB an image, spilled to
disk where they do not fit): a sample of them goes to every node, and distances come back. The
driver holds the manifest's rows and 44 bytes of measurements each: about 2 GB for a million images
while it judges them, most of it names.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from bloodcells.errors import BloodcellsError, RunIncompleteError, StoreError
from bloodcells.features import Extractor, Features, distances
from bloodcells.grouping import Grouping, Listed
from bloodcells.isolated import ISOLATE_FROM, IsolatedDecoder
from bloodcells.manifest import Rules, compose, leaders_of, reference_rows
from bloodcells.measuring import MEASURED_SCHEMA, measure_shard
from bloodcells.pipeline.attempts import MAX_ATTEMPTS, Attempts
from bloodcells.pipeline.listing import Lister, ListingSummary
from bloodcells.stores import ListingProblem, Source, open_store

REFERENCE_SIZE: Final = 2000
"""Pictures that all others are compared with: 5 MB of features on each node."""

SOURCES_AHEAD: Final = 256
"""Most listings that are handed to Ray at once."""

SHARDS_A_CPU: Final = 3
"""Reading tasks in Ray's hands for each CPU of the cluster; a listing runs twice as far ahead."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A manifest, and what is not in it.

    Attributes:
        manifest: rows in ``MANIFEST_SCHEMA``.
        num_ignored: files that are no images.
        problems: sources that were not listed in full.
    """

    manifest: pa.Table
    num_ignored: int
    problems: tuple[ListingProblem, ...]


def build_manifest(
    stores: Sequence[str],
    *,
    grouping: Grouping | None = None,
    rules: Rules | None = None,
    look: bool = True,
) -> Prepared:
    """List, read, measure and judge all images of some stores; Ray must be running.

    Args:
        stores: URIs of labelled stores.
        grouping: what belongs together, and splits that are given.
        rules: what decides whether an image is used.
        look: whether pictures are decoded and looked at; without it they are only read and hashed,
            and the findings are ``unlabelled``, ``conflicting_label`` and ``exact_duplicate``.

    Raises:
        StoreError: a store cannot be used.
        StorageError: a store is out of reach.
        ConfigurationError: a column is missing, or splits tear a group apart.
        RunIncompleteError: a shard ended its process again and again.
    """
    grouping, rules = grouping or Grouping(), rules or Rules()
    sources = open_store(stores, slide_pattern=grouping.slide_pattern).sources()
    answers, features = _measure_all(sources, grouping, look=look)
    tables, num_ignored, problems = _gathered(answers)
    measured = pa.concat_tables([MEASURED_SCHEMA.empty_table(), *tables]).combine_chunks()
    leaders = leaders_of(measured, rules)
    distance = np.full(len(measured), np.nan, np.float32)
    if look:
        sizes = [len(table) - table["fingerprint"].null_count for table in tables]
        distance = _distances(measured, leaders, sizes, features)
    return Prepared(
        manifest=compose(measured, leaders, distance, rules),
        num_ignored=num_ignored,
        problems=tuple(sorted(problems, key=lambda problem: problem.uri)),
    )


def _measure_all(
    sources: Sequence[Source], grouping: Grouping, *, look: bool
) -> tuple[list[Any], list[Any]]:
    """Start a task a shard, a few at a time; returns references to answers and to features."""
    num_cpus = _num_cpus()
    measure: Any = ray.remote(_measure_or_error).options(
        num_returns=2, max_retries=MAX_ATTEMPTS - 1
    )
    attempts = Attempts()
    answers: list[Any] = []
    features: list[Any] = []
    unfinished: list[Any] = []
    for listed in _listed(sources, grouping, num_cpus):
        if len(unfinished) >= SHARDS_A_CPU * num_cpus:
            _, unfinished = ray.wait(unfinished, num_returns=1)
        answer, seen = measure.remote(listed, look, attempts)
        answers.append(answer)
        features.append(seen)
        unfinished.append(answer)
    return answers, features


def _num_cpus() -> int:
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(1, int(found.get("CPU", 1)))


def _listed(sources: Sequence[Source], grouping: Grouping, at_once: int) -> Iterator[Any]:
    """Yield references to shards and, one a source, to a summary; the driver sees no member."""
    # They wait for the reading, and must not keep a CPU from it. Actors, because Ray ends idle
    # workers beyond the number of CPUs, and starting new ones takes longer than a small listing.
    made: Any = ray.remote(Lister).options(
        num_cpus=0, max_restarts=MAX_ATTEMPTS - 1, max_task_retries=MAX_ATTEMPTS - 1
    )
    listers = [made.remote(grouping) for _ in range(min(at_once, len(sources)))]
    streams: deque[Any] = deque()
    for source, lister in zip(sources, itertools.cycle(listers), strict=False):
        stream = lister.list_or_error.options(
            num_returns="streaming", _generator_backpressure_num_objects=2 * SHARDS_A_CPU
        )
        streams.append(stream.remote(source))
        if len(streams) == SOURCES_AHEAD:
            yield from streams.popleft()
    for waiting in streams:
        yield from waiting


def _measure_or_error(listed: Listed | ListingSummary, look: bool, attempts: Attempts) -> Any:
    """Measure one shard in a task; an error is an answer, or Ray would wrap it in its own."""
    if isinstance(listed, ListingSummary):
        return listed, None
    try:
        attempt = attempts.begin(f"reading shard {listed.shard.shard_id}")
        extractor = _extractor() if look else None
        if attempt < ISOLATE_FROM:
            return measure_shard(listed, extractor)
        with IsolatedDecoder() as decoder:
            return measure_shard(listed, extractor, decoder.decode_batch)
    except BloodcellsError as error:
        return error, None


@functools.cache
def _extractor() -> Extractor:
    return Extractor()  # once a worker


def _gathered(answers: Sequence[Any]) -> tuple[list[pa.Table], int, list[ListingProblem]]:
    """Wait for all answers; returns a table each, and what the listings said."""
    tables: list[pa.Table] = []
    num_ignored = 0
    problems: list[ListingProblem] = []
    for reference in answers:
        answer = _get(reference)
        error = answer.error if isinstance(answer, ListingSummary) else answer
        if isinstance(error, BloodcellsError):
            raise error
        if isinstance(answer, ListingSummary):
            num_ignored += answer.num_ignored
            problems += answer.problems
            answer = MEASURED_SCHEMA.empty_table()
        tables.append(answer)
    return tables, num_ignored, problems


def _get(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise StoreError(
            f"a store cannot be read ({type(cause).__name__}: {cause}); check that its files are "
            "what their names say, or leave it out"
        ) from error
    except ray.exceptions.RayError as error:
        raise RunIncompleteError(
            f"reading a store ended its process {MAX_ATTEMPTS} times ({type(error).__name__}); it "
            "may need more memory than there is"
        ) from error


def _distances(
    measured: pa.Table,
    leaders: npt.NDArray[np.int64],
    sizes: Sequence[int],
    features: Sequence[Any],
) -> npt.NDArray[np.float32]:
    """Return each row's distance from a sample of the store; NaN where there is no picture.

    Args:
        measured: all rows.
        leaders: who stands for whom.
        sizes: pictures with features in each answer; their rows follow each other in ``measured``.
        features: a reference to the features of each answer.
    """
    far, pick = ray.remote(_distances_of), ray.remote(_pick)
    found = np.full(len(measured), np.nan, np.float32)
    seen = np.flatnonzero(measured["fingerprint"].is_valid().to_numpy(zero_copy_only=False))
    hashes = measured["content_hash"].take(pa.array(seen)).to_pylist()
    chosen = np.searchsorted(seen, reference_rows(measured, leaders, REFERENCE_SIZE))
    ends = np.cumsum(sizes, dtype=np.int64)
    spans = [
        (reference, int(end - size), int(end))
        for reference, size, end in zip(features, sizes, ends, strict=True)
        if size
    ]
    picked = [
        pick.remote(reference, chosen[(chosen >= start) & (chosen < end)] - start)
        for reference, start, end in spans
    ]
    if not picked:
        return found
    sample = ray.put(np.concatenate([_get(part) for part in picked]))
    keys = ray.put([hashes[place] for place in chosen])
    tasks = [
        far.remote(reference, hashes[start:end], sample, keys) for reference, start, end in spans
    ]
    found[seen] = np.concatenate([_get(task) for task in tasks])
    return found


def _pick(features: Features, places: npt.NDArray[np.int64]) -> Features:
    return features[places]


def _distances_of(
    features: Features, keys: list[str], reference: Features, reference_keys: list[str]
) -> npt.NDArray[np.float32]:
    return distances(features, keys, reference, reference_keys)
