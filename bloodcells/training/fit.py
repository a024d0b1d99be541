"""Start the training workers on a Ray cluster, and wait for the model they make.

A worker that dies (its process, its node, a preemption) costs the work since the last checkpoint:
Ray Train starts the workers anew, as many as have room, and they go on from there.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import ray
import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from torch import Tensor

from bloodcells.allocator import keep_freed_memory
from bloodcells.bundle import ModelBundle
from bloodcells.errors import BloodcellsError, ConfigurationError, RunIncompleteError
from bloodcells.pipeline.cluster import quieten_ray_data, resources_in_reach
from bloodcells.training.ingest import TrainingData
from bloodcells.training.loop import Figures, StagedTraining, TrainedModel, TrainingTask
from bloodcells.training.recipe import Recipe
from bloodcells.training.record import write_history
from bloodcells.training.sampling import images_per_epoch

_CORES_A_FEED: Final = 8
"""Training cores that one task can make batches for: augmenting an image takes a small model's
training about a tenth of what its step takes."""


_STARTS: Final = 5
"""How often workers that find no room, or do not come up, are waited for again (60 s each)."""


class _LocalTrainer(TorchTrainer):
    """For Ray as a job starts it: without a dashboard, and gone when the job is.

    Ray 2.60 starts a watcher that frees a lost trainer's resources. It asks the dashboard, and
    complains every second where there is none. Without this private method it would only be noisy.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback)]


@dataclass(frozen=True, kw_only=True)
class Workers:
    """What training takes of a cluster.

    Attributes:
        low, high: least and most workers; between them Ray Train takes what has room, and follows
            a cluster that grows or shrinks.
        use_gpu: whether each has a GPU.
        num_threads: CPU threads of each.
        cpus: CPUs that each asks of Ray.
        feed_cpus: CPUs that a task asks which makes batches. None where every core trains: Ray Data
            divides free CPUs between the workers, and a part of a CPU may be too little for a task.
        feed_tasks: most such tasks at once for each worker; ``None`` for as many as have room.
    """

    low: int
    high: int
    use_gpu: bool
    num_threads: int
    cpus: float
    feed_cpus: float
    feed_tasks: int | None


def workers_for(asked: str | None) -> Workers:
    """Divide the cluster between workers and the tasks that feed them.

    Args:
        asked: ``N`` or ``MIN:MAX``; by default one a GPU, else two where there are two cores.

    Raises:
        ConfigurationError: it is no such number, or there is no room for so many.
    """
    resources = resources_in_reach()
    num_cpus, num_gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    room = num_gpus or num_cpus
    low, high = bounds_of(asked) if asked else (num_gpus or min(2, num_cpus),) * 2
    if low > room:
        kind = "GPU" if num_gpus else "CPU core"
        raise ConfigurationError(
            f"--num-workers {asked}: a worker needs a {kind}, and the cluster has {room}"
        )
    present = min(high, room)  # more may come, where a range was asked for
    has_spare = num_gpus > 0 and num_cpus - present >= 2 * present
    cores = 1 if num_gpus else cores_of_each(present)
    num_threads = max(1, num_cpus // present) if num_gpus else cores
    return Workers(
        low=low,
        high=high,
        use_gpu=num_gpus > 0,
        num_threads=num_threads,
        cpus=cores,
        feed_cpus=1.0 if has_spare else 0.0,
        feed_tasks=None if has_spare else max(1, num_threads // _CORES_A_FEED),
    )


def cores_of_each(num_workers: int) -> int:
    """Return the most CPU cores that each of some workers can have; a worker is on one node."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    cores = [int(resources.get("CPU", 0)) for resources in alive]
    possible = range(max(cores, default=1), 1, -1)
    return next((c for c in possible if sum(n // c for n in cores) >= num_workers), 1)


def bounds_of(asked: str) -> tuple[int, int]:
    """Return the least and the most workers of ``N`` or ``MIN:MAX``.

    Raises:
        ConfigurationError: it is neither.
    """
    low, _, high = asked.partition(":")
    try:
        bounds = int(low), int(high or low)
    except ValueError:
        bounds = 0, 0
    if not 1 <= bounds[0] <= bounds[1]:
        raise ConfigurationError(f"--num-workers {asked}: give N or MIN:MAX, from 1 or more")
    return bounds


def fit(
    data: TrainingData,
    recipe: Recipe,
    weights: Mapping[str, Tensor],
    *,
    folder: str,
    workers: Workers,
    max_failures: int = 3,
    checkpoint_minutes: float = 10.0,
    teachers: Sequence[ModelBundle] = (),
) -> TrainedModel:
    """Train a classifier on Ray Train; Ray must be running.

    Args:
        data: what :func:`load_training_data` returned.
        recipe: how to train.
        weights: the state to start from.
        folder: URI of the training folder; on a cluster of several machines every one must reach
            it. A checkpoint there is gone on from.
        workers: see :func:`workers_for`.
        max_failures: how often the workers are started anew.
        checkpoint_minutes: most minutes between two checkpoints; one is kept after every epoch.
        teachers: bundles whose networks it learns from, as far as the recipe says.

    Raises:
        ConfigurationError: there are too few images for so many workers.
        RunIncompleteError: the workers failed too often; the same call goes on.
        BloodcellsError: what a worker met that no new start mends.
    """
    require_enough_images(data.train.counts(), recipe, workers)
    task = TrainingTask(
        recipe=recipe,
        data=data,
        weights=weights,
        folder=folder,
        checkpoint_minutes=checkpoint_minutes,
        feed_cpus=workers.feed_cpus,
        feed_tasks=workers.feed_tasks,
        teachers=teachers,
    )
    # Train's configuration travels as JSON-like values; the task goes once, by reference.
    config = {"task": ray.put(task), "num_threads": workers.num_threads}
    is_local = not os.environ.get("RAY_ADDRESS")
    if is_local:  # no node of it is ever taken away
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    num_workers = workers.low if workers.low == workers.high else (workers.low, workers.high)
    resources = {"CPU": workers.cpus} | ({"GPU": 1.0} if workers.use_gpu else {})
    with tempfile.TemporaryDirectory(prefix="bloodcells-train-") as place:
        trainer = (_LocalTrainer if is_local else TorchTrainer)(
            train_on_rank,  # type: ignore[arg-type]  # Train V2 takes what it returns
            train_loop_config=config,
            scaling_config=ScalingConfig(
                num_workers=num_workers,  # type: ignore[arg-type]  # a pair is elastic
                use_gpu=workers.use_gpu,
                resources_per_worker=resources,
            ),
            run_config=RunConfig(
                storage_path=place,  # our own checkpoints do not go through Ray
                name="fit",
                failure_config=FailureConfig(  # type: ignore[call-arg]  # Train V2
                    max_failures=max_failures,
                    controller_failure_limit=_STARTS,
                ),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        try:
            trained = trainer.fit().return_value  # type: ignore[attr-defined]  # Train V2
        except TrainingFailedError as error:
            raise _explained(error, folder) from error
    if not isinstance(trained, TrainedModel):
        raise TypeError(f"the training workers returned {type(trained).__name__}, not a model")
    return trained


def require_enough_images(counts: npt.NDArray[np.int64], recipe: Recipe, workers: Workers) -> None:
    """Refuse a number of workers that leaves one with fewer than two images in a step.

    Raises:
        ConfigurationError: names the number of workers that would do.
    """
    total = int(images_per_epoch(counts, recipe.balance).sum())
    in_step = total // max(1, round(total / recipe.batch_size))
    if in_step < 2 * workers.high:
        raise ConfigurationError(
            f"--num-workers {workers.high}: a step has {in_step} images, and each worker needs at "
            f"least 2 of them; give at most {max(1, in_step // 2)} workers, or a larger batch_size "
            "in --recipe"
        )


def train_on_rank(config: dict[str, Any]) -> TrainedModel:
    """Train as one of several workers; what the first rank returns is the result.

    An error on one rank is raised, never returned: Ray then ends the others, which would wait.
    """
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train announces every report there
    quieten_ray_data(logging.ERROR)
    torch.set_num_threads(config["num_threads"])
    keep_freed_memory()
    task: TrainingTask = ray.get(config["task"])
    context = ray.train.get_context()

    def announce(figures: Figures) -> None:
        ray.train.report({k: v for k, v in figures.items() if k != "step_losses"})
        if context.get_world_rank() == 0:
            assert task.folder is not None
            write_history(task.folder, training.history)
            _print(epoch_line(figures))

    training = StagedTraining(
        task,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=ray.train.torch.get_device(),
        announce=announce,
        say=_print,
    )
    return training.run()


def epoch_line(figures: Figures) -> str:
    """Return an epoch's figures as a line for a person."""
    return (
        f"stage {figures['stage_name']}, epoch {figures['epoch']} of {figures['num_epochs']}: "
        f"loss {figures['loss']:.3f}, validation loss {figures['val_loss']:.3f}, accuracy "
        f"{figures['val_accuracy']:.4f}{' (kept)' if figures['is_best'] else ''}, "
        f"{figures['images_per_s']:,.0f} images/s"
    )


def _print(line: str) -> None:
    # Not print, which Ray Train replaces by a logger that says everything twice.
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _explained(error: TrainingFailedError, folder: str) -> BloodcellsError:
    """Return what ended a training as a sentence; what a rank raised on purpose is one already."""
    causes = [getattr(e, "cause", e) for e in getattr(error, "worker_failures", {}).values()]
    for cause in causes:
        if isinstance(cause, BloodcellsError):
            return cause
    cause = causes[0] if causes else error
    reason = next(iter(str(cause).strip().splitlines()), "no reason given")
    return RunIncompleteError(
        f"training stopped: its workers failed too often, at last with {type(cause).__name__} "
        f"({reason}). What was reached is in {folder}; run the same command again to go on"
    )
