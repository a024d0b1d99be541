"""Reading many byte ranges of one file with few large reads. Knows nothing of what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from bloodcells import storage

LARGEST_READ = 8 * 2**20
"""Bytes: on S3 a request's latency is then a small part of its time. Two of these are held."""

LARGEST_GAP = 256 * 2**10
"""Bytes between two ranges that are read and thrown away, rather than asked for apart."""

Range = tuple[int, int]
"""Offset and length, in bytes."""


def read_ranges(uri: str, ranges: Sequence[Range]) -> Iterator[memoryview]:
    """Yield the bytes of each range, in order; fewer where the file ends.

    Neighbouring ranges are read together, and the next block while the last one is worked on. A
    range longer than ``LARGEST_READ`` is a block of its own.

    Raises:
        StorageError: the file is gone or out of reach.
    """

    def read(block: Sequence[Range]) -> tuple[int, memoryview]:
        start, end = _extent(block)
        return start, memoryview(storage.read_range(uri, start, end - start))

    blocks = _blocks(ranges)
    with ThreadPoolExecutor(1) as reader:
        following = next(blocks, None)
        ahead = reader.submit(read, following) if following else None
        while following and ahead:
            block, (start, data) = following, ahead.result()
            following = next(blocks, None)
            ahead = reader.submit(read, following) if following else None
            for offset, length in block:
                yield data[offset - start : offset - start + length]


def _blocks(ranges: Sequence[Range]) -> Iterator[Sequence[Range]]:
    """Group neighbouring ranges into what one read brings."""
    first, start, end = 0, 0, 0
    for number, (offset, length) in enumerate(ranges):
        new_end = max(end, offset + length)
        if number > first and (
            not start <= offset <= end + LARGEST_GAP or new_end - start > LARGEST_READ
        ):
            yield ranges[first:number]
            first = number
        if number == first:
            start, new_end = offset, offset + length
        end = new_end
    if ranges:
        yield ranges[first:]


def _extent(block: Sequence[Range]) -> Range:
    return block[0][0], max(offset + length for offset, length in block)
