"""Run the trials of a study on Ray Tune, as many at once as there are GPUs, or else CPU cores.

ASHA (asynchronous successive halving) stops trials that are among the worse of their rung. Source:
Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", arXiv:1810.05934.

Ray keeps no state of a study: a trial goes on from its own checkpoints, a finished one has its
record, and the scheduler is told again what finished trials reported. Written for GPUs too, so far
run on CPUs only.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

import ray
import torch
from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import ASHAScheduler
from torch import Tensor

from bloodcells.allocator import keep_freed_memory
from bloodcells.errors import BloodcellsError, StorageError
from bloodcells.pipeline.cluster import quieten_ray_data
from bloodcells.training import study
from bloodcells.training.fit import Workers, workers_for
from bloodcells.training.ingest import TrainingData
from bloodcells.training.loop import Figures, StagedTraining, TrainingTask
from bloodcells.training.recipe import Recipe
from bloodcells.training.search_space import HEAD_FIRST, SearchSpace

REDUCTION: Final = 3
"""Of the trials that reach a rung, about one in so many goes on to the next."""

GRACE_SHARE: Final = 1 / 4
"""Share of its epochs that every trial gets: before that a peak rate has hardly been reached."""

MAX_DEATHS: Final = 2
"""How often a trial whose worker died is started anew; it goes on from its checkpoint."""

_WORST: Final = -1e9
"""Score of an epoch whose figure is no number."""

_OWN_FAULTS: Final = (BloodcellsError, RuntimeError, ValueError, ArithmeticError, MemoryError)
"""What a trial's settings can bring about; torch's "out of memory" is a ``RuntimeError``."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Study:
    """All that the trials share.

    Attributes:
        folder: URI of the study; on a cluster of several machines every one must reach it.
        space: what is tried.
        data: what :func:`load_training_data` returned.
        weights: the state that every trial starts from.
        checkpoint_minutes: most minutes between two checkpoints of a trial; one is kept after
            every epoch.
    """

    folder: str
    space: SearchSpace
    data: TrainingData
    weights: Mapping[str, Tensor]
    checkpoint_minutes: float = 10.0

    def recipe_of(self, number: int) -> Recipe:
        """Return what a trial trains by."""
        return self.space.recipe_of(self.space.configuration(number))


def run_trials(
    shared: Study,
    numbers: Sequence[int],
    finished: Sequence[study.TrialRecord],
    say: Say,
    check: Callable[[], None] = lambda: None,
) -> dict[int, str]:
    """Run trials and write each one's record when it is over; Ray must be running.

    Args:
        shared: what they share.
        numbers: the trials to run.
        finished: the trials that are over, for the scheduler to compare with.
        say: prints a line for a person.
        check: called with every epoch; may raise to end the study.

    Returns:
        Trials that could not reach their data or the study's folder, and why; they have no record.

    Raises:
        StorageError: the study's folder cannot be written.
    """
    workers = tuning_workers()
    scheduler = _scheduler(shared.space, finished)
    watch = _Watch(shared, say, check)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # whose tables come even at verbosity 0
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # no files of every trial
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # ours ends the job
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    resources = {"CPU": workers.cpus} | ({"GPU": 1.0} if workers.use_gpu else {})
    trainable = tune.with_parameters(_run_trial, shared=shared, workers=workers)
    with tempfile.TemporaryDirectory(prefix="bloodcells-tune-") as place:
        tune.Tuner(
            tune.with_resources(trainable, resources),
            param_space={"number": tune.grid_search(list(numbers))},
            tune_config=tune.TuneConfig(
                scheduler=scheduler,
                max_concurrent_trials=workers.high,
                trial_dirname_creator=lambda trial: f"{trial.config['number']:03d}",
            ),
            run_config=tune.RunConfig(
                name="study",
                storage_path=place,  # nothing of a trial goes through Ray
                failure_config=tune.FailureConfig(max_failures=MAX_DEATHS),
                callbacks=[watch],
                verbose=0,
            ),
        ).fit()
    return watch.unreachable


def tuning_workers() -> Workers:
    """Divide the cluster between trials: one a GPU, else one a CPU core, of one thread."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    if resources.get("GPU", 0) >= 1:
        return workers_for(None)
    return workers_for(str(max(1, int(resources.get("CPU", 1)))))


def grace_epochs(space: SearchSpace) -> int:
    """Return how many epochs every trial gets: at least one beyond those of a head alone."""
    least = math.ceil(GRACE_SHARE * space.num_epochs)
    if HEAD_FIRST in space.stagings:
        least = max(least, space.num_head_epochs() + 1)
    return min(least, space.num_epochs)


def _scheduler(space: SearchSpace, finished: Sequence[study.TrialRecord]) -> ASHAScheduler:
    """Return a scheduler that knows what finished trials reported."""
    scheduler = ASHAScheduler(
        time_attr="epochs",
        metric="score",
        mode="max",
        max_t=space.num_epochs,
        grace_period=grace_epochs(space),
        reduction_factor=REDUCTION,
    )
    controller: Any = None  # ASHA asks it nothing
    for trial in finished:
        stand_in: Any = SimpleNamespace(trial_id=f"finished-{trial.number}")
        scheduler.on_trial_add(controller, stand_in)
        for epochs, figures in enumerate(trial.history, start=1):
            scheduler.on_trial_result(controller, stand_in, _result(space, epochs, figures))
    return scheduler


def _result(space: SearchSpace, epochs: int, figures: Figures) -> dict[str, Any]:
    """Return an epoch as the scheduler takes it: the higher the score the better."""
    metric = space.recipe.metric
    score = -figures[metric] if metric == "val_loss" else figures[metric]
    shown = {key: value for key, value in figures.items() if key != "step_losses"}
    return {
        "epochs": epochs,
        "score": score if math.isfinite(score) else _WORST,
        "figures": shown,
    }


def _end(how: str, why: str | None = None) -> dict[str, Any]:
    """Return a trial's last report; it counts no epochs, so that the scheduler passes it by."""
    return {"epochs": 0, "score": _WORST, "how": how, "why": why}


def _run_trial(config: dict[str, Any], *, shared: Study, workers: Workers) -> None:
    """Train one trial, from its newest checkpoint where there is one; reports every epoch."""
    quieten_ray_data()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    torch.set_num_threads(workers.num_threads)
    keep_freed_memory()
    number: int = config["number"]
    recipe = shared.recipe_of(number)
    num_reported = 0

    def report_new() -> None:
        # What was trained before an interruption is reported as well: the scheduler has lost it.
        nonlocal num_reported
        for figures in training.history[num_reported:]:
            num_reported += 1
            tune.report(_result(shared.space, num_reported, figures))

    try:
        training = StagedTraining(
            TrainingTask(
                recipe=recipe,
                data=shared.data,
                weights=shared.weights,
                folder=study.trial_folder(shared.folder, number),
                checkpoint_minutes=shared.checkpoint_minutes,
                feed_cpus=workers.feed_cpus,
                feed_tasks=workers.feed_tasks,
            ),
            device=torch.device("cuda" if workers.use_gpu else "cpu"),
            announce=lambda figures: report_new(),
        )
        training.run()
        report_new()
        diverged = study.diverged_stage(recipe, training.history)
    except StorageError as error:
        tune.report(_end("unreachable", str(error)))
    except RayError:
        raise  # a lost worker or node: Tune starts the trial anew
    except _OWN_FAULTS as error:  # the others go on
        tune.report(_end("failed", f"{type(error).__name__}: {_first_line(error)}"))
    else:
        why = None if diverged is None else f"the loss of stage {diverged} was no number"
        tune.report(_end("complete" if why is None else "failed", why))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "no reason given")


class _Watch(tune.Callback):
    """Hears of every trial, in the driver, and writes the records of those that are over."""

    def __init__(self, shared: Study, say: Say, check: Callable[[], None]) -> None:
        self.shared, self.say, self.check = shared, say, check
        self.histories: dict[int, dict[int, Figures]] = {}
        self.ends: dict[int, tuple[str, str | None]] = {}
        self.unreachable: dict[int, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks, to go on by; nobody goes on by Tune's state

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.check()
        number = trial.config["number"]
        if "how" in result:
            self.ends[number] = (result["how"], result["why"])
        elif "figures" in result:
            figures = result["figures"]
            self.histories.setdefault(number, {})[result["epochs"]] = figures
            self.say(
                f"trial {number}: epoch {result['epochs']} of {self.shared.space.num_epochs}, "
                f"validation loss {figures['val_loss']:.3f}, accuracy "
                f"{figures['val_accuracy']:.4f}, {figures['images_per_s']:,.0f} images/s"
            )

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        number = trial.config["number"]
        num_epochs = len(self.histories.get(number, {}))
        is_through = num_epochs >= self.shared.space.num_epochs
        how, why = self.ends.get(number, ("complete" if is_through else "stopped early", None))
        self._finish(number, how, why)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._finish(trial.config["number"], "failed", f"its worker failed {MAX_DEATHS + 1} times")

    def _finish(self, number: int, how: str, why: str | None) -> None:
        if how == "unreachable":
            self.unreachable[number] = why or ""
            self.say(f"trial {number} is left over: {why}")
            return
        reported = self.histories.get(number, {})
        history = [reported[epochs] for epochs in sorted(reported)]
        space = self.shared.space
        best = study.best_figures(history, space.recipe.metric)
        if how != "failed" and best is None:
            how, why = "failed", "none of its epochs has figures that are numbers"
        record = study.TrialRecord(
            number=number,
            configuration=space.configuration(number).to_dict(),
            outcome=how,  # type: ignore[arg-type]  # one of the three
            best=best,
            failure=why,
            history=history,
        )
        study.finish_trial(self.shared.folder, record)
        self.say(describe(record, space))


def describe(trial: study.TrialRecord, space: SearchSpace) -> str:
    """Return what came of a trial as a line for a person."""
    chosen = trial.configuration
    tried = (
        f"learning rate {chosen['learning_rate']:g}, weight decay {chosen['weight_decay']:g}, "
        f"augmentation x{chosen['strength']:g}, stages {chosen['staging']}"
    )
    reached = f"after {len(trial.history)} of {space.num_epochs} epochs"
    came = trial.outcome if trial.outcome == "complete" else f"{trial.outcome} {reached}"
    if trial.failure is not None:
        return f"trial {trial.number} {came} ({trial.failure}): {tried}"
    assert trial.best is not None
    return (
        f"trial {trial.number} {came}, best {space.recipe.metric} "
        f"{trial.best[space.recipe.metric]:.4f}: {tried}"
    )
