"""Merging a run's score files on the cluster: a task a group of shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final, NamedTuple

import ray

from bloodcells import storage
from bloodcells.errors import BloodcellsError, RunIncompleteError
from bloodcells.merging import groups_to_merge, merge_group
from bloodcells.pipeline.attempts import MAX_ATTEMPTS

GROUPS_AT_ONCE: Final = 256
"""Most merging tasks that are handed to Ray at once."""

CHECK_EVERY_S: Final = 1.0


class NewFile(NamedTuple):
    """A merged file that is there now: how many shards it holds, and what its task asked of S3."""

    num_shards: int
    traffic: storage.Traffic


def merge_parts(
    run_uri: str,
    run_id: str,
    *,
    merged_bytes: int,
    num_cpus: float,
    check: Callable[[], None] = lambda: None,
) -> Iterator[NewFile]:
    """Merge a run's parts into few large files; yields each new file.

    Args:
        run_uri: the run folder; its books were checked, and its record says that it is merging.
        run_id: the run that owns it.
        merged_bytes: what a file should have; see :func:`bloodcells.merging.groups_to_merge`.
        num_cpus: cores that a task books.
        check: called every second or so while tasks are waited for; what it raises ends them.

    Raises:
        BloodcellsError: a part cannot be read, or the run folder cannot be reached; what was merged
            stays merged.
    """
    merge: Any = ray.remote(_merge_or_error).options(
        max_retries=MAX_ATTEMPTS - 1,
        num_cpus=num_cpus,
        memory=2 * merged_bytes,  # the file as it grows, and the shards that are read ahead
    )
    groups = groups_to_merge(run_uri, merged_bytes)
    waiting: dict[ray.ObjectRef[storage.Traffic | BloodcellsError], int] = {}
    try:
        while True:
            for group in islice(groups, GROUPS_AT_ONCE - len(waiting)):
                waiting[merge.remote(run_uri, run_id, group)] = len(group)
            if not waiting:
                return
            while not (ready := ray.wait(list(waiting), timeout=CHECK_EVERY_S)[0]):
                check()
            yield _answered(ready[0], waiting)
    finally:
        for task in waiting:
            ray.cancel(task, force=True)


def _answered(
    done: ray.ObjectRef[storage.Traffic | BloodcellsError],
    waiting: dict[ray.ObjectRef[storage.Traffic | BloodcellsError], int],
) -> NewFile:
    num_shards = waiting.pop(done)
    try:
        answer: storage.Traffic | BloodcellsError = ray.get(done)
    except ray.exceptions.RayError as failure:
        reason = str(failure).strip().splitlines()[-1]
        raise RunIncompleteError(
            f"all images are scored, but merging the files of {num_shards:,} shards failed "
            f"({reason}); run the same command again to go on"
        ) from failure
    if isinstance(answer, BloodcellsError):
        raise answer
    return NewFile(num_shards, answer)


def _merge_or_error(
    run_uri: str, run_id: str, shard_ids: list[str]
) -> storage.Traffic | BloodcellsError:
    """Merge a group in a task; an error is an answer, or Ray would wrap it in its own."""
    try:
        merge_group(run_uri, run_id, shard_ids)
    except BloodcellsError as error:
        return error
    return storage.take_traffic()
