"""The limit of serving: images decoded and scored in a loop, with nothing between.

With ``--processes`` each has one thread and all start together; what is written is the images that
all of them scored in the window, by its length. With ``--batch 1`` the time of every image is kept.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from itertools import cycle
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np

from bloodcells.allocator import keep_freed_memory
from bloodcells.bundle import ModelBundle
from bloodcells.imaging import Picture, decode_batch
from bloodcells.scoring import Scorer

WARM_UP_S = 1.0
START_S = 300.0


def main() -> None:
    """Score for a while and write how many images, and how long each batch took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--images", required=True, type=Path, help="folder of JPEG files")
    parser.add_argument("--batch", type=int, required=True, help="images in a forward pass")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of each process; default: torch's choice")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--out", required=True, type=Path)
    flags = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(flags.processes)
    with context.Pool(flags.processes, initializer=_remember, initargs=(barrier,)) as pool:
        shares = pool.map(_score, [flags] * flags.processes, chunksize=1)
    every = [seconds for share in shares for seconds in share]
    num_images = flags.batch * len(every)
    document = {
        "images_per_second": num_images / flags.seconds,
        "batch": flags.batch,
        "num_images": num_images,
        "median_ms": statistics.median(every) * 1000,
    }
    flags.out.write_text(json.dumps(document) + "\n")


_barriers: list[Barrier] = []


def _remember(barrier: Barrier) -> None:
    _barriers.append(barrier)


def _score(flags: argparse.Namespace) -> list[float]:
    """Return the seconds of each batch that ended in the window."""
    keep_freed_memory()  # as our scorers do
    scorer = Scorer(
        ModelBundle.load(flags.bundle),
        device="cpu",
        num_threads=flags.threads,
        micro_batch=flags.batch,
    )
    images = cycle([path.read_bytes() for path in sorted(flags.images.glob("*.jpg"))])
    _barriers[0].wait(START_S)  # a process that comes too late would be measured alone
    start = time.perf_counter() + WARM_UP_S
    end = start + flags.seconds
    taken = []
    while (began := time.perf_counter()) < end:
        batch = [next(images) for _ in range(flags.batch)]
        pictures = decode_batch(batch, scorer.bundle.preprocess)
        assert all(isinstance(picture, Picture) for picture in pictures)
        pixels = np.stack([p.pixels for p in pictures if isinstance(p, Picture)])
        scorer.probabilities(pixels)
        if start <= (now := time.perf_counter()) < end:
            taken.append(now - began)
    return taken


if __name__ == "__main__":
    main()
