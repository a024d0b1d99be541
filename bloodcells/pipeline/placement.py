"""Where the work goes on a cluster: readers and decoders on CPU nodes, scorers on GPU nodes.

Ray keeps what asks for no GPU away from nodes that have one while others have room
(``scheduler_avoid_gpu_nodes``, on by default), so it is enough to ask for what is needed.
"""

from __future__ import annotations

from typing import Any, Final

READING_CPUS: Final = 0.25
"""Share of a core that a reading task books on a machine without a GPU, beside the scorers' 0.75.
Decoding takes 0.5 ms an image where the smallest model takes 4 to 5 ms."""

SCORING_CPUS: Final = 0.75


def reading_resources(device: str) -> dict[str, Any]:
    """Return what a reading task books: all of a core beside GPUs, which decoding has to feed.

    Args:
        device: what the scorers compute on, ``cuda`` or ``cpu``.
    """
    return {"num_cpus": 1 if device == "cuda" else READING_CPUS}


def scoring_resources(device: str) -> dict[str, Any]:
    """Return what a scorer books: a GPU and no core, or most of a core."""
    if device == "cuda":
        return {"num_cpus": 0, "num_gpus": 1}
    return {"num_cpus": SCORING_CPUS}
