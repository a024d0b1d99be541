"""Planned shards streamed through a Ray cluster: read and decode, score, publish.

One row is one whole shard, because rows are never cut while blocks are. Tasks on CPUs read and
decode (:func:`bloodcells.scoring.load_shard`); a pool of scorers takes the pixels from the object
store, scores and publishes (:func:`bloodcells.scoring.publish_loaded`); the driver sees one small
row a shard.

A shard that killed its reader twice is decoded in a process of its own; one that keeps failing is
left over.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from bloodcells.accounting import PlannedShard
from bloodcells.bundle import ModelBundle
from bloodcells.errors import (
    AccessDeniedError,
    BloodcellsError,
    RunError,
    RunIncompleteError,
    RunSupersededError,
    StorageError,
    StorageFullError,
)
from bloodcells.imaging import Preprocess
from bloodcells.isolated import IsolatedDecoder
from bloodcells.pipeline.attempts import MAX_SCORER_STARTS, Attempts
from bloodcells.publish import ShardOutcome, read_planned
from bloodcells.records import Shard
from bloodcells.runs import current_run_id
from bloodcells.scoring import LoadedShard, Scorer, load_records, load_shard, publish_loaded
from bloodcells.stores import read_shard

ISOLATE_FROM: Final = 3
"""The attempt from which a shard is decoded in a process of its own: it has killed two workers."""

SHARD_CPUS: Final = 0.25
"""Share of a core that a reading task books on a machine without a GPU, beside the scorers' 0.75.
Decoding is about a tenth of the work of the smallest model (``benchmarks/bulk.py``)."""

SCORER_CPUS: Final = 0.75
SHARDS_IN_FLIGHT: Final = 2
"""Decoded shards that wait at each scorer; about 27 MB each at 96 px."""

_PLANNED_FIELDS: Final = ["shard_id", "plan_uri", "plan_row", "num_images"]


@dataclass(frozen=True, kw_only=True)
class ScorerPool:
    """How the scorers are spread over a cluster.

    Attributes:
        min_size, max_size: bounds between which the pool grows and shrinks.
        device: ``cuda`` (one GPU a scorer) or ``cpu`` (one core a scorer: on a CPU, scorers of one
            thread each beat one scorer of many, which waits for its slowest thread at every layer).
        compile_model: whether each scorer compiles its model first.
        micro_batch: images in a forward pass, ``None`` for the device's default.
    """

    min_size: int
    max_size: int
    device: str
    compile_model: bool
    micro_batch: int | None = None


def score_planned(
    run_uri: str,
    run_id: str,
    shards: Sequence[PlannedShard],
    *,
    bundle_uri: str,
    preprocess: Preprocess,
    pool: ScorerPool,
) -> Iterator[ShardOutcome]:
    """Score and publish planned shards; yields what became of each, in order of completion."""
    attempts = Attempts()
    on_gpu = pool.device == "cuda"
    scored = (
        _shard_rows(shards)
        .map_batches(
            Loader(preprocess, attempts),
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=1 if on_gpu else SHARD_CPUS,
        )
        .map_batches(
            ScoringActor,
            fn_constructor_args=(run_uri, run_id, bundle_uri, pool, attempts),
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ActorPoolStrategy(
                min_size=min(pool.min_size, len(shards)),
                max_size=min(pool.max_size, len(shards)),
                initial_size=min(pool.max_size, len(shards)),
                max_tasks_in_flight_per_actor=SHARDS_IN_FLIGHT,
            ),
            num_cpus=1 if on_gpu else SCORER_CPUS,
            num_gpus=1 if on_gpu else 0,
        )
    )
    for row in scored.iter_rows():
        yield pickle.loads(row["outcome"])


class Loader:
    """Ray Data's reading task: a planned shard in, its pixels and identity out."""

    def __init__(self, preprocess: Preprocess, attempts: Attempts) -> None:
        self.preprocess = preprocess
        self.attempts = attempts

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Read and decode one shard; failures travel on as an outcome instead of pixels."""
        planned = PlannedShard(**batch.select(_PLANNED_FIELDS).to_pylist()[0])
        try:
            attempt = self.attempts.begin(f"reading shard {planned.shard_id}")
            shard = read_planned(planned.plan_uri, planned.plan_row)
            return _loaded_row(self._load(shard, is_suspect=attempt >= ISOLATE_FROM))
        except (StorageError, RunIncompleteError) as error:
            return _failure_row(_failed(planned.shard_id, error))

    def _load(self, shard: Shard, *, is_suspect: bool) -> LoadedShard:
        if not is_suspect:
            return load_shard(shard, self.preprocess)
        with IsolatedDecoder() as decoder:
            return load_records(read_shard(shard), shard, self.preprocess, decoder.decode)


class ScoringActor:
    """One scorer of the pool: holds the model, scores and publishes what the loaders send."""

    def __init__(
        self, run_uri: str, run_id: str, bundle_uri: str, pool: ScorerPool, attempts: Attempts
    ) -> None:
        attempts.begin("starting a scorer", at_most=MAX_SCORER_STARTS)
        self.run_uri = run_uri
        self.run_id = run_id
        self.attempts = attempts
        self.scorer = Scorer(
            ModelBundle.load(bundle_uri),
            device=pool.device,
            num_threads=1 if pool.device == "cpu" else None,
            compile_model=pool.compile_model,
            micro_batch=pool.micro_batch,
        )
        self.scorer.warm_up()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Score and publish one shard; returns its outcome."""
        row = batch.slice(0, 1)
        failure = row["failure"][0].as_py()
        if failure is not None:
            return _outcome_row(pickle.loads(failure))
        loaded = _loaded_from(row)
        try:
            self.attempts.begin(f"scoring shard {loaded.shard_id}")
            self._require_ownership()
            return _outcome_row(publish_loaded(loaded, self.scorer, self.run_uri))
        except (StorageError, RunError) as error:
            return _outcome_row(_failed(loaded.shard_id, error))

    def _require_ownership(self) -> None:
        """Publish nothing into a folder that was started anew since: its plan is another."""
        if current_run_id(self.run_uri) != self.run_id:
            raise RunSupersededError(
                f"{self.run_uri} was started anew by another run; this one stops"
            )


def _shard_rows(shards: Sequence[PlannedShard]) -> Dataset:
    """Make a dataset of one block a shard, so that one task is one shard."""
    columns = {name: [getattr(shard, name) for shard in shards] for name in _PLANNED_FIELDS}
    table = pa.table(columns)
    return ray.data.from_arrow([table.slice(k, 1) for k in range(len(shards))])


def _loaded_row(loaded: LoadedShard) -> pa.Table:
    pixels = np.ascontiguousarray(loaded.pixels)
    # Built from the buffer itself: the only copy is the one into the object store.
    offsets = pa.py_buffer(np.array([0, pixels.nbytes], np.int64))
    column = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), 1, [None, offsets, pa.py_buffer(pixels.reshape(-1))]
    )
    return pa.table(
        {
            "shard_id": [loaded.shard_id],
            "begun_at": [loaded.begun_at],
            "bytes_read": [loaded.bytes_read],
            "size": [pixels.shape[1]],
            "pixels": column,
            "identity": [_ipc_bytes(loaded.identity)],
            "quarantine": [_ipc_bytes(loaded.quarantine)],
            "failure": pa.array([None], pa.binary()),
        }
    )


def _failure_row(outcome: ShardOutcome) -> pa.Table:
    return pa.table(
        {
            "shard_id": [outcome.shard_id],
            "begun_at": [0.0],
            "bytes_read": [0],
            "size": [1],
            "pixels": pa.array([b""], pa.large_binary()),
            "identity": [b""],
            "quarantine": [b""],
            "failure": pa.array([pickle.dumps(outcome)], pa.binary()),
        }
    )


def _loaded_from(row: pa.Table) -> LoadedShard:
    size = row["size"][0].as_py()
    pixels = np.frombuffer(row["pixels"][0].as_buffer(), np.uint8).reshape(-1, size, size, 3)
    return LoadedShard(
        shard_id=row["shard_id"][0].as_py(),
        begun_at=row["begun_at"][0].as_py(),
        bytes_read=row["bytes_read"][0].as_py(),
        pixels=pixels,
        identity=pa.ipc.open_stream(row["identity"][0].as_py()).read_all(),
        quarantine=pa.ipc.open_stream(row["quarantine"][0].as_py()).read_all(),
    )


def _outcome_row(outcome: ShardOutcome) -> pa.Table:
    return pa.table({"outcome": pa.array([pickle.dumps(outcome)], pa.binary())})


def _ipc_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _failed(shard_id: str, error: BloodcellsError) -> ShardOutcome:
    awaits_all = isinstance(error, (AccessDeniedError, StorageFullError, RunSupersededError))
    return ShardOutcome(shard_id=shard_id, error=str(error), is_fatal=awaits_all)
