"""The study's folder: what was asked, what each trial came to. Knows nothing of Ray.

``STUDY/study.json`` holds settings, space and all trials; ``trials/<number>/`` the checkpoints of a
trial while it runs, and at its end ``trial.json``, put there whole. A trial that has one is over;
the others run when the same command is given again. Local or S3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, TypeVar

from bloodcells import storage
from bloodcells.errors import NotFoundError, RunError, RunMismatchError
from bloodcells.runs import environment, now
from bloodcells.training import checkpoints
from bloodcells.training.recipe import Recipe
from bloodcells.training.record import differences
from bloodcells.training.stopping import EarlyStopping

STUDY_NAME: Final = "study.json"
TRIAL_NAME: Final = "trial.json"
RECIPE_NAME: Final = "recipe.json"

Outcome = Literal["complete", "stopped early", "failed"]
Figures = dict[str, Any]
_Record = TypeVar("_Record")


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """``trial.json``: a trial that is over.

    Attributes:
        number: from 1.
        configuration: what it tried.
        outcome: ``complete``, ``stopped early`` by the scheduler, or ``failed``.
        best: the figures of its best epoch, with ``epochs``, counted over all stages from 1;
            ``None`` where there is none.
        failure: why it failed.
        history: the figures of every epoch.
    """

    number: int
    configuration: dict[str, Any]
    outcome: Outcome
    best: Figures | None
    failure: str | None
    history: list[Figures]

    @property
    def seconds(self) -> float:
        """Time spent training, validation not included, in s."""
        return float(sum(figures["seconds"] for figures in self.history))

    def summary(self) -> dict[str, Any]:
        """Return plain values without the figures of every epoch."""
        values = asdict(self)
        del values["history"]
        return values | {"epochs": len(self.history), "seconds": round(self.seconds, 3)}


@dataclass(kw_only=True)
class StudyRecord:
    """``study.json`` in memory.

    Attributes:
        folder: URI of the study.
        settings: what the trials depend on, but for how many there are.
        space: the ranges.
        num_trials: how many are asked for.
        status: ``running`` until all trials are over.
        best: number of the best trial.
        trials: every trial that is over, in order, without the figures of its epochs.
        created, finished: ISO 8601.
    """

    folder: str
    settings: dict[str, Any]
    space: dict[str, Any]
    num_trials: int
    status: Literal["running", "complete"] = "running"
    best: int | None = None
    trials: list[dict[str, Any]] = field(default_factory=list)
    created: str = field(default_factory=now)
    finished: str | None = None
    environment: dict[str, str] = field(default_factory=environment)

    def save(self) -> None:
        """Write ``study.json``, atomically."""
        record = asdict(self)
        del record["folder"]
        _write(storage.join(self.folder, STUDY_NAME), record)

    def require_same(self, settings: Mapping[str, Any], num_trials: int) -> None:
        """Refuse to go on with other settings; more trials are welcome.

        Raises:
            RunMismatchError: names each setting that differs, with both values.
        """
        if found := differences(self.settings, settings):
            raise RunMismatchError(
                f"{self.folder} holds a study with other settings ({'; '.join(found)}). Choose "
                "another --out, ask for the same, or start anew there with --restart"
            )
        if num_trials < self.num_trials:
            raise RunMismatchError(
                f"{self.folder} holds a study of {self.num_trials} trials; give --trials "
                f"{self.num_trials} or more, or start anew there with --restart"
            )


def open_study(folder: str) -> StudyRecord | None:
    """Read a study's record; ``None`` where there is none.

    Raises:
        RunError: it is there but is not one of ours.
    """
    values = _read(storage.join(folder, STUDY_NAME))
    return None if values is None else _made(StudyRecord, folder, {**values, "folder": folder})


def trial_folder(study: str, number: int) -> str:
    """Return the folder of a trial."""
    return storage.join(study, "trials", f"{number:03d}")


def finished_trials(study: str, num_trials: int) -> dict[int, TrialRecord]:
    """Return the trials that are over, by number.

    Raises:
        RunError: one's record is damaged.
    """
    found: dict[int, TrialRecord] = {}
    for number in range(1, num_trials + 1):
        uri = storage.join(trial_folder(study, number), TRIAL_NAME)
        values = _read(uri)
        if values is not None:
            found[number] = _made(TrialRecord, uri, values)
    return found


def finish_trial(study: str, trial: TrialRecord) -> None:
    """Write a trial's record, then remove its checkpoints."""
    folder = trial_folder(study, trial.number)
    _write(storage.join(folder, TRIAL_NAME), asdict(trial))
    checkpoints.forget_all(folder)


def forget_trials(study: str) -> None:
    """Remove what every trial left."""
    try:
        entries = list(storage.walk(storage.join(study, "trials")))
    except NotFoundError:
        return
    for entry in entries:
        storage.delete(entry.uri)


def best_figures(history: Sequence[Figures], metric: str) -> Figures | None:
    """Return the figures of the best epoch, with its number over all stages as ``epochs``.

    These are of the weights that the training ends with, because each stage goes on from the best
    of the one before and keeps what it began with where it finds no better.
    """
    watch = EarlyStopping(metric=metric, patience=None)
    for number, figures in enumerate(history, start=1):
        watch.see(number, figures)
    if watch.best_epoch < 1:
        return None
    return {**history[watch.best_epoch - 1], "epochs": watch.best_epoch}


def ranked(trials: Sequence[TrialRecord], metric: str) -> list[TrialRecord]:
    """Return trials, best first: those that ran to their end, those stopped early, those failed.

    One that was stopped early is never preferred: what it would have come to is not known.
    """
    sign = -1.0 if metric == "val_loss" else 1.0
    order: Final = ("complete", "stopped early", "failed")

    def key(trial: TrialRecord) -> tuple[int, float, float, int]:
        best = trial.best
        figures = (-sign * best[metric], best["val_loss"]) if best else (float("inf"),) * 2
        return (order.index(trial.outcome), *figures, trial.number)

    return sorted(trials, key=key)


def diverged_stage(recipe: Recipe, history: Sequence[Figures]) -> str | None:
    """Return the first stage that ended before its epochs and its patience did: its loss diverged.

    Args:
        recipe: of a training that ran to its end.
        history: its epochs.
    """
    for number, stage in enumerate(recipe.stages):
        own = [figures for figures in history if figures["stage"] == number]
        since_best = 0
        for figures in own:
            since_best = 0 if figures["is_best"] else since_best + 1
        is_patience_over = stage.patience is not None and since_best >= stage.patience
        if len(own) < stage.epochs and not is_patience_over:
            return stage.name
    return None


def _write(uri: str, values: Mapping[str, Any]) -> None:
    storage.put(uri, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())


def _read(uri: str) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(storage.read(uri))
    except NotFoundError:
        return None
    except ValueError as error:
        raise _damaged(uri, error) from error
    return values


def _made(kind: type[_Record], uri: str, values: Mapping[str, Any]) -> _Record:
    try:
        return kind(**values)
    except TypeError as error:
        raise _damaged(uri, error) from error


def _damaged(uri: str, error: Exception) -> RunError:
    return RunError(
        f"{uri} is not a study's record ({error}); choose another --out, or start anew there with "
        "--restart"
    )
