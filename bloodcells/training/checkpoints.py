"""What training leaves behind while it goes on, so that it can be killed at any moment.

In the training folder: ``checkpoint-<steps>.pt``, the newest state; ``best-<stage>-<epoch>.pt``,
the best weights of a stage so far. Each is put there whole, or not at all, and what it replaces is
removed only then. Local or S3. Knows nothing of Ray.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pickle import UnpicklingError
from typing import Any, Final

import torch
from torch import Tensor

from bloodcells import storage
from bloodcells.errors import NotFoundError, RunError

_CHECKPOINT: Final = re.compile(r"checkpoint-(\d{9})\.pt")
_BEST: Final = re.compile(r"best-(\d+)-(\d+)\.pt")

State = dict[str, Any]


def save_checkpoint(folder: str, num_steps: int, state: State) -> None:
    """Save the state after ``num_steps`` optimizer steps, and remove older ones."""
    name = f"checkpoint-{num_steps:09d}.pt"
    storage.put(storage.join(folder, name), _packed(state))
    for other in _names(folder):
        if _CHECKPOINT.fullmatch(other) and other < name:
            storage.delete(storage.join(folder, other))


def newest_checkpoint(folder: str) -> State | None:
    """Return the newest state, or ``None`` where there is none.

    Raises:
        RunError: it is there but cannot be read.
    """
    names = [name for name in _names(folder) if _CHECKPOINT.fullmatch(name)]
    return _unpacked(storage.join(folder, max(names))) if names else None


def save_best(folder: str, stage: int, epoch: int, weights: Mapping[str, Tensor]) -> None:
    """Save the best weights of a stage so far."""
    storage.put(storage.join(folder, f"best-{stage}-{epoch}.pt"), _packed(dict(weights)))


def best_weights(folder: str, stage: int, epoch: int) -> dict[str, Tensor]:
    """Return the weights that :func:`save_best` saved."""
    return _unpacked(storage.join(folder, f"best-{stage}-{epoch}.pt"))


def forget_best(folder: str, *, but: tuple[int, int] | None = None) -> None:
    """Remove best weights that no checkpoint speaks of any more: all, or all but one."""
    for name in _names(folder):
        match = _BEST.fullmatch(name)
        if match and (int(match[1]), int(match[2])) != but:
            storage.delete(storage.join(folder, name))


def forget_all(folder: str) -> None:
    """Remove every state: training is complete."""
    for name in _names(folder):
        if _CHECKPOINT.fullmatch(name) or _BEST.fullmatch(name):
            storage.delete(storage.join(folder, name))


def _names(folder: str) -> list[str]:
    try:
        return [entry.name for entry in storage.listdir(folder)]
    except NotFoundError:
        return []


def _packed(state: State) -> bytes:
    sink = io.BytesIO()
    torch.save(state, sink)
    return sink.getvalue()


def _unpacked(uri: str) -> State:
    try:
        state: State = torch.load(
            io.BytesIO(storage.read(uri)), map_location="cpu", weights_only=True
        )
    except (RuntimeError, ValueError, EOFError, KeyError, UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise RunError(
            f"{uri} cannot be read ({reason}); remove it to go on from the start of the training, "
            "or give --restart"
        ) from error
    return state
