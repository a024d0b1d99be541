"""The limit: a model in a loop over pixels that lie in memory; nothing is read, nothing decoded."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.contenders.script import BATCH_SIZE, arguments, load_model, write_table
from bloodcells.allocator import keep_freed_memory
from bloodcells.fusion import fuse_convolutions

_state: dict[str, Any] = {}
"""The model and the pixels of this process."""


def main() -> None:
    """Classify the first images of a file of pixels."""
    parser = arguments(__doc__)
    parser.add_argument("--pixels", required=True, help="uint8 (N, S, S, 3) in a .npy file")
    parser.add_argument("--num-images", required=True, type=int)
    parser.add_argument("--model", choices=("eager", "folded", "compiled"), required=True)
    parser.add_argument("--processes", type=int, default=1, help="of one thread each, if over 1")
    flags = parser.parse_args()
    logits = list(_predict_all(flags))
    write_table(flags.out, [str(k) for k in range(flags.num_images)], logits)


def _predict_all(flags: Any) -> Iterator[npt.NDArray[np.float32]]:
    bounds = [
        (start, min(start + BATCH_SIZE, flags.num_images))
        for start in range(0, flags.num_images, BATCH_SIZE)
    ]
    if flags.processes == 1:
        _set_up(flags.bundle, flags.model, flags.pixels, None)
        yield from map(_predict, bounds)
        return
    with ProcessPoolExecutor(
        flags.processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_set_up,
        initargs=(flags.bundle, flags.model, flags.pixels, 1),
    ) as pool:
        yield from pool.map(_predict, bounds)


def _set_up(bundle: str, way: str, pixels: str, num_threads: int | None) -> None:
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    if way != "eager":
        keep_freed_memory()  # as our scorers do
    model = load_model(bundle, folded=way != "eager")
    _state["pixels"] = np.load(pixels)  # all of them, however few are asked for: see README
    if way == "folded":  # as our scorers do
        model = fuse_convolutions(model, (BATCH_SIZE, *_state["pixels"].shape[1:]))
    _state["model"] = torch.compile(model) if way == "compiled" else model


def _predict(bounds: tuple[int, int]) -> npt.NDArray[np.float32]:
    start, stop = bounds
    # Padded like ours, so that a compiled model sees one shape.
    batch = np.zeros((BATCH_SIZE, *_state["pixels"].shape[1:]), np.uint8)
    batch[: stop - start] = _state["pixels"][start:stop]
    with torch.inference_mode():
        logits: npt.NDArray[np.float32] = _state["model"](torch.from_numpy(batch)).numpy()
    return logits[: stop - start]


if __name__ == "__main__":
    main()
