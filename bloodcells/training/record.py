"""The training folder: what was asked, how it went so far, live metrics. Knows nothing of Ray.

``BUNDLE/training/`` holds ``training.json`` (settings, status, figures of every epoch),
``tensorboard/`` (the same figures and the loss of every step, as event files), and, while training
goes on, checkpoints. The same settings go on there, others are refused.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from bloodcells import storage
from bloodcells.errors import NotFoundError, RunError, RunMismatchError
from bloodcells.runs import environment, now

RECORD_NAME: Final = "training.json"
EVENTS_NAME: Final = "events.out.tfevents.bloodcells"

Status = Literal["running", "complete"]


@dataclass(kw_only=True)
class TrainingRecord:
    """``training.json`` in memory.

    Attributes:
        folder: URI of the training folder.
        settings: what the bundle depends on.
        status: ``running`` until the bundle is saved.
        created, finished: ISO 8601.
        history: the figures of every epoch.
    """

    folder: str
    settings: dict[str, Any]
    status: Status = "running"
    created: str = field(default_factory=now)
    finished: str | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=environment)

    def save(self) -> None:
        """Write ``training.json``, atomically."""
        record = asdict(self)
        del record["folder"]
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        storage.put(record_uri(self.folder), text.encode())

    def require_same(self, asked: Mapping[str, Any]) -> None:
        """Refuse to go on with other settings.

        Raises:
            RunMismatchError: names each setting that differs, with both values.
        """
        if found := differences(self.settings, asked):
            raise RunMismatchError(
                f"{self.folder} holds a training with other settings ({'; '.join(found)}). "
                "Choose another --out, ask for the same, or start anew there with --restart"
            )


def differences(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Return each setting that differs, with both values, as words for a person."""
    here, there = _flat(recorded), _flat(asked)
    return [
        f"{name}: {here.get(name)} there, {there.get(name)} asked for"
        for name in sorted(here.keys() | there.keys())
        if here.get(name) != there.get(name)
    ]


def training_folder(bundle_uri: str) -> str:
    """Return the training folder of a bundle."""
    return storage.join(bundle_uri, "training")


def record_uri(folder: str) -> str:
    """Return the URI of a training folder's record."""
    return storage.join(folder, RECORD_NAME)


def open_training(folder: str) -> TrainingRecord | None:
    """Read a training folder's record; ``None`` where there is none.

    Raises:
        RunError: it is there but is not one of ours.
    """
    try:
        return TrainingRecord(folder=folder, **json.loads(storage.read(record_uri(folder))))
    except NotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise RunError(
            f"{record_uri(folder)} is not a training's record ({error}); choose another --out, or "
            "start anew there with --restart"
        ) from error


def write_history(folder: str, history: Sequence[Mapping[str, Any]]) -> None:
    """Write the figures of all epochs so far to ``training.json`` and as TensorBoard events."""
    record = open_training(folder)
    if record is not None:
        record.history = [dict(figures) for figures in history]
        record.save()
    write_events(folder, history)


def write_events(folder: str, history: Sequence[Mapping[str, Any]]) -> None:
    """Write one event file that holds all of ``history``; it replaces the one before."""
    from torch.utils.tensorboard.writer import SummaryWriter  # every rank would import it

    with tempfile.TemporaryDirectory(prefix="bloodcells-events-") as place:
        with SummaryWriter(place) as writer:
            for figures in history:
                _add_epoch(writer, figures)
        (events,) = Path(place).iterdir()
        storage.put(storage.join(folder, "tensorboard", EVENTS_NAME), events.read_bytes())


def _add_epoch(writer: Any, figures: Mapping[str, Any]) -> None:
    """Add an epoch: its figures at its last step, its losses at each of its own."""
    at = {"global_step": figures["step"], "walltime": figures["time"]}
    tags = {
        "loss/train": "loss",
        "loss/validation": "val_loss",
        "accuracy/train": "accuracy",
        "accuracy/validation": "val_accuracy",
        "macro_f1/validation": "val_macro_f1",
        "learning_rate": "learning_rate",
        "images_per_s": "images_per_s",
    }
    for tag, name in tags.items():
        writer.add_scalar(tag, figures[name], **at)
    first = figures["step"] - len(figures["step_losses"]) + 1
    for step, loss in enumerate(figures["step_losses"], start=first):
        writer.add_scalar("loss/step", loss, global_step=step, walltime=figures["time"])


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings as dotted names and values."""
    if isinstance(values, Mapping):
        pairs = values.items()
    elif isinstance(values, list | tuple):
        pairs = enumerate(values)  # type: ignore[assignment]
    else:
        return {prefix.rstrip("."): values}
    return {k: v for key, value in pairs for k, v in _flat(value, f"{prefix}{key}.").items()}
