"""How many images a shard has where nobody says: a thousand, and more where a store is large.

What is done once a shard (a commit mark, a row in the books, a message to the driver) costs the
same for a large shard as for a small one; the pixels that a scorer holds at once do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bloodcells.stores.listing import Source

SHARD_IMAGES: Final = 1000
MOST_SHARD_IMAGES: Final = 10_000

SHARDS_WANTED: Final = 10_000
"""Shards of a store beyond which they grow rather than become more: enough for a thousand scorers
to finish at about the same time."""

IMAGE_BYTES: Final = 15_000
"""A single-cell JPEG of 360 px, as the common analysers write them."""

GROWS_EVERY: Final = 1_000_000
"""Images of one source after which its shards grow: a folder does not say how many it has."""


def automatic_size(sources: Sequence[Source], *, largest: int) -> int:
    """Return how many images the shards of a store have at first; known before it is listed.

    Args:
        sources: the store's sources; archives count by their bytes, folders as one shard each.
        largest: the most images that a shard may have.
    """
    shard_bytes = SHARD_IMAGES * IMAGE_BYTES
    shards = sum(max(1, source.size // shard_bytes) for source in sources)
    return min(largest, SHARD_IMAGES * max(1, -(-shards // SHARDS_WANTED)))


def grown_size(shard_size: int, num_listed: int, largest: int | None) -> int:
    """Return how many images the next shard of a source has.

    Args:
        shard_size: what its first shard has.
        num_listed: images in its shards so far.
        largest: the most that a shard may have; ``None`` where shards do not grow.
    """
    if largest is None:
        return shard_size
    return max(shard_size, min(largest, shard_size * (1 + num_listed // GROWS_EVERY)))


def largest_size(pixels_bytes: int, image_px: int) -> int:
    """Return the most images whose pixels take no more than so many bytes, in whole thousands.

    Args:
        pixels_bytes: what the decoded pixels of one shard may take.
        image_px: side of an image as the model has it, in pixels, three bytes each.
    """
    fitting = pixels_bytes // (3 * image_px**2)
    return min(MOST_SHARD_IMAGES, max(SHARD_IMAGES, fitting - fitting % SHARD_IMAGES))
