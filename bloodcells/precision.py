"""How devices compute: images in a forward pass, and the precision that stands in every score row.

Knows nothing of models.
"""

from __future__ import annotations

from typing import Final

MICRO_BATCH: Final = {"cpu": 32, "cuda": 256}
"""Images in one forward pass; the last batch of a shard is padded to it. On one CPU thread, lite0
at 96 px took 1.17 times as long an image in batches of 8 as in 32, 0.92 to 1.04 times in 16 and
1.12 times in 64 (best of 8 passes, a busy machine). What suits a GPU was not measured."""

PRECISIONS: Final = ("float32", "bfloat16")


def precision_on(device: str) -> str:
    """Return the precision in which a device computes, as it stands in every score row."""
    return "bfloat16" if device == "cuda" else "float32"
