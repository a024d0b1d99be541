"""Reading many byte ranges of one file with few large reads. Knows nothing of what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bloodcells import storage

LARGEST_READ = 8 * 2**20
"""Bytes: on S3 a request's latency is then a small part of its time; and what a reader holds."""

LARGEST_GAP = 256 * 2**10
"""Bytes between two ranges that are read and thrown away, rather than asked for apart."""


def read_ranges(uri: str, ranges: Sequence[tuple[int, int]]) -> Iterator[memoryview]:
    """Yield the bytes of each range ``(offset, length)``, in order; fewer where the file ends.

    Neighbouring ranges are read together. A range longer than ``LARGEST_READ`` is read alone.

    Raises:
        StorageError: the file is gone or out of reach.
    """
    first = 0
    while first < len(ranges):
        start, length = ranges[first]
        end, last = start + length, first + 1
        while last < len(ranges):
            offset, length = ranges[last]
            new_end = max(end, offset + length)
            if not start <= offset <= end + LARGEST_GAP or new_end - start > LARGEST_READ:
                break
            end, last = new_end, last + 1
        block = memoryview(storage.read_range(uri, start, end - start))
        for offset, length in ranges[first:last]:
            yield block[offset - start : offset - start + length]
        first = last
