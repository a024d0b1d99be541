"""Which pictures of a store are looked at: the same ones whatever they are packed in.

Pictures are chosen by their content, so that a folder, a tar and a table of the same pictures give
the same sample, in the same order. Knows nothing of what is looked for.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bloodcells.imaging import content_hash
from bloodcells.records import Fault, Shard
from bloodcells.stores import read_shard

SAMPLE_SIZE: Final = 200

SEARCHED: Final = 120
"""Pictures of the sample that a model is asked about, where it is."""

MOST_READ: Final = 20_000
"""Pictures whose content is read to choose among them. Of a larger store some shards are chosen
first, by their ids, which do depend on the container."""

MOST_BYTES: Final = 2 * 2**30
"""Bytes that are read to choose among them: pictures may be large."""

Encoded = bytes | npt.NDArray[np.generic]


def sample_images(
    shards: Iterable[Shard], num_images: int, *, sample_size: int = SAMPLE_SIZE
) -> list[Encoded]:
    """Choose pictures of a store.

    Args:
        shards: of the store, sorted by :func:`chosen_first`, for a large store is not read whole.
        num_images: most that may be chosen among; they have at most ``MOST_BYTES`` together, and
            one picture more.
        sample_size: most that are chosen.

    Returns:
        Encoded bytes or pixels, those with the smallest content hashes; each content once.

    Raises:
        StorageError: the store cannot be reached.
    """
    smallest: dict[str, Encoded] = {}
    heap: list[tuple[int, str]] = []
    for data in _readable(shards, num_images):
        key = content_hash(data)
        rank = (-int(key[:16], 16), key)
        if key in smallest or (len(heap) == sample_size and rank < heap[0]):
            continue
        smallest[key] = data
        heapq.heappush(heap, rank)
        if len(heap) > sample_size:
            del smallest[heapq.heappop(heap)[1]]
    return [smallest[key] for key in sorted(smallest)]


def chosen_first(shard_id: str) -> str:
    """Return what a store's shards are sorted by before they are sampled."""
    return hashlib.sha256(shard_id.encode()).hexdigest()


def _readable(shards: Iterable[Shard], num_images: int) -> Iterator[Any]:
    seen = num_bytes = 0
    for shard in shards:
        for record in read_shard(shard):
            seen += 1
            if not isinstance(record.data, Fault):
                yield record.data
                num_bytes += _num_bytes(record.data)
            if seen == num_images or num_bytes >= MOST_BYTES:
                return


def _num_bytes(data: Encoded) -> int:
    return data.nbytes if isinstance(data, np.ndarray) else len(data)
