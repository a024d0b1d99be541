"""Start the training workers and make a bundle of what they learnt."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import ray
import torch
from ray.train import LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from bloodcells.bundle import ModelBundle
from bloodcells.errors import ConfigurationError
from bloodcells.evaluation import Evaluation
from bloodcells.models import create_model, pretraining_of
from bloodcells.storage import name_of
from bloodcells.training.calibration import REVIEW_ERROR, calibrate
from bloodcells.training.ingest import LabelledPixels
from bloodcells.training.loop import TrainedModel, TrainingTask, train_on_rank
from bloodcells.training.recipe import Recipe


class _LocalTrainer(TorchTrainer):
    """For Ray as a job starts it: without a dashboard, and gone when the job is.

    Ray 2.60 starts a watcher that frees a lost trainer's resources. It asks the dashboard, and
    complains every second where there is none. Without this private method it would only be noisy.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback)]


def fit(
    data: LabelledPixels,
    recipe: Recipe,
    *,
    stores: Sequence[str],
    about_data: str = "",
    num_workers: int | None = None,
) -> tuple[ModelBundle, Evaluation]:
    """Train a classifier and calibrate it on the validation images; Ray must be running.

    Args:
        data: what :func:`load_labelled` returned.
        recipe: how to train.
        stores: URIs that the data came from; their names go into the bundle's facts.
        about_data: source and licence of the data, for the model card.
        num_workers: by default one a GPU, else two where the cluster has two cores.

    Returns:
        The bundle, and its figures on the validation images, by the weights as shipped.

    Raises:
        ConfigurationError: the model is unknown, or there is no room for so many workers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        start = create_model(recipe.model, pretrained=True).state_dict()
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    num_cpus, num_gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    workers = num_workers or num_gpus or min(2, num_cpus)
    room = num_gpus or num_cpus
    if workers > room:
        kind = "GPU" if num_gpus else "CPU core"
        raise ConfigurationError(
            f"--num-workers {workers}: a worker needs a {kind}, and the cluster has {room}"
        )
    cpus_per_worker = max(1, num_cpus // workers)
    task = TrainingTask(
        recipe=recipe, data=data, weights=ray.put(start), num_threads=cpus_per_worker
    )
    with tempfile.TemporaryDirectory(prefix="bloodcells-train-") as folder:
        is_local = not os.environ.get("RAY_ADDRESS")
        if is_local:  # no node of it is ever taken away
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        trainer = (_LocalTrainer if is_local else TorchTrainer)(
            train_on_rank,  # type: ignore[arg-type]  # Train V2 takes what it returns
            train_loop_config={"task": task},
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=num_gpus > 0,
                resources_per_worker={"CPU": cpus_per_worker, "GPU": int(num_gpus > 0)},
            ),
            run_config=RunConfig(
                storage_path=folder,
                name="fit",
                logging_config=LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]
            ),
        )
        trained = trainer.fit().return_value  # type: ignore[attr-defined]  # Train V2
    if not isinstance(trained, TrainedModel):
        raise TypeError(f"the training workers returned {type(trained).__name__}, not a model")
    counts = data.counts(validation=False)
    calibration, evaluation = calibrate(trained.logits, trained.labels, counts)
    bundle = ModelBundle(
        model_name=recipe.model,
        preprocess=data.preprocess,
        calibration=calibration,
        state_dict=trained.weights,
        facts={
            "data": _data_facts(data, stores, about_data),
            "pretraining": pretraining_of(recipe.model),
            "recipe": recipe.to_dict() | {"num_workers": workers},
            "validation": _figures(evaluation),
            "review": {"accepted_error": REVIEW_ERROR},
            "software": {name: version(name) for name in ("bloodcells", "torch", "timm", "ray")},
        },
    )
    return bundle, evaluation


def _data_facts(data: LabelledPixels, stores: Sequence[str], about: str) -> dict[str, Any]:
    digest = hashlib.sha256("\n".join(sorted(data.content_hashes)).encode())
    return {
        "about": about,
        "stores": sorted({name_of(uri) for uri in stores}),
        "num_train": int((~data.is_validation).sum()),
        "num_validation": int(data.is_validation.sum()),
        "left_out": dict(data.left_out),
        "content_digest": f"sha256:{digest.hexdigest()}",
    }


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    """Return the figures that a model card shows, rounded to what they can bear."""
    return {
        "num_images": evaluation.num_labelled,
        "accuracy": [round(figure, 4) for figure in evaluation.accuracy],
        "macro_f1": round(evaluation.macro_f1, 4),
        "calibration_error": round(evaluation.reliability.expected_error, 4),
        "classes": {
            c.name: {
                "num_images": c.num_labelled,
                "precision": round(c.precision.value, 4) if c.num_predicted else None,
                "recall": round(c.recall.value, 4),
            }
            for c in evaluation.classes
        },
    }
