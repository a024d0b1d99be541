"""One training from a manifest to a bundle with its report; a killed one goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from scipy.special import softmax

from bloodcells import storage
from bloodcells.bundle import MANIFEST_NAME, ModelBundle
from bloodcells.errors import ConfigurationError, RunError
from bloodcells.imaging import Preprocess
from bloodcells.lease import Lease
from bloodcells.models import default_model, require_size, start_model
from bloodcells.pipeline.cluster import cluster_device
from bloodcells.runs import now
from bloodcells.training import checkpoints
from bloodcells.training.fit import fit, workers_for
from bloodcells.training.folds import HeldOut, out_of_fold, with_review
from bloodcells.training.home import with_home
from bloodcells.training.ingest import digest_of, load_training_data
from bloodcells.training.recipe import AUTO, Recipe
from bloodcells.training.record import TrainingRecord, open_training, training_folder
from bloodcells.training.review import report_training
from bloodcells.training.shipping import make_bundle
from bloodcells.training.stage_run import coarse_size
from bloodcells.training.teaching import require_teachers

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """What a bundle is made of.

    Attributes:
        manifest: rows in ``MANIFEST_SCHEMA``.
        source: the dataset or store, for messages.
        stores: URIs of the stores; their names go into the bundle's facts.
        recipe: how to train.
        preprocess: how the model will see images.
        weights: URI of weights to start from, or ``None`` for what the model is known by.
        from_scratch: start from random weights.
        about: source and licence of the data, for the model card.
        folds: further trainings, each without a fold of the images, whose predictions of these
            decide what goes to review; 0 to decide by the validation images alone.
        elsewhere: a bundle whose network the new one is to have for pictures of other labs.
        teachers: bundles whose networks the new one learns from, as far as the recipe says.
    """

    manifest: pa.Table
    source: str
    stores: Sequence[str]
    recipe: Recipe
    preprocess: Preprocess
    weights: str | None = None
    from_scratch: bool = False
    about: str = ""
    folds: int = 0
    elsewhere: ModelBundle | None = None
    teachers: Sequence[ModelBundle] = ()

    def __post_init__(self) -> None:
        """Refuse networks that would need other pictures, before the training."""
        require_teachers(self.recipe, self.teachers, self.preprocess)
        if self.folds and self.teachers:
            raise ConfigurationError(
                "--folds: the teachers have learned from every fold, so what is learned from them "
                "is not judged by any; leave out --folds"
            )
        other = self.elsewhere
        if other and (other.preprocess != self.preprocess or other.elsewhere):
            raise ConfigurationError(
                f"--elsewhere-bundle: the bundle {other.digest} sees {other.preprocess}, or has a "
                f"network for other labs itself; the new one sees {self.preprocess}: give --size "
                "and --crop as that was trained with, and a bundle of one network"
            )


@dataclass(frozen=True, kw_only=True)
class Means:
    """What a training may use; nothing of it changes what comes out, but for rounding.

    Attributes:
        num_workers: ``N``, ``MIN:MAX``, or ``None`` for what suits the cluster.
        max_failures: how often workers that died are started anew.
        checkpoint_minutes: most minutes between two checkpoints.
    """

    num_workers: str | None = None
    max_failures: int = 3
    checkpoint_minutes: float = 10.0


def resolved(recipe: Recipe, preprocess: Preprocess) -> Recipe:
    """Return a recipe with a model, the one that suits the cluster where it named none.

    Raises:
        ConfigurationError: there is no such model, or it cannot take pictures of this size.
    """
    if recipe.model == AUTO:
        recipe = replace(recipe, model=default_model(cluster_device()))
    require_size(recipe.model, preprocess.size)
    if any(stage.num_coarse for stage in recipe.stages):
        require_size(recipe.model, coarse_size(preprocess.size))
    return recipe


def train_bundle(
    out: str, request: TrainingRequest, means: Means, say: Say, *, restart: bool = False
) -> ModelBundle:
    """Train, calibrate and save a bundle, or go on with a training that is there.

    Args:
        out: URI of the bundle's folder; ``training/`` in it holds what a killed run goes on from.
        request: what to make.
        means: what it may use.
        say: prints a line for a person.
        restart: throw away what is there.

    Raises:
        BloodcellsError: a setting cannot be used, or training stopped; the message says how to go
            on.
    """
    recipe = request.recipe.without_recall() if request.from_scratch else request.recipe
    workers = workers_for(means.num_workers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)  # what is drawn at random to start from
        start, pretraining = start_model(
            recipe.model, weights=request.weights, from_scratch=request.from_scratch
        )
    if request.from_scratch and not recipe.stages[0].train_batch_norm:
        say(
            "warning: batch norm is frozen at statistics that random weights do not fit; set "
            "train_batch_norm in the recipe's first stage"
        )
    settings: dict[str, Any] = {
        "recipe": recipe.to_dict(),
        "preprocess": request.preprocess.to_dict(),
        "data": digest_of(request.manifest),
        "pretraining": pretraining,
    }
    if request.folds:
        settings["folds"] = request.folds
    if request.elsewhere:
        settings["elsewhere"] = request.elsewhere.digest
    taught_by = {"teachers": [t.digest for t in request.teachers]} if request.teachers else {}
    settings |= taught_by
    folder = training_folder(out)
    with Lease(folder):
        record = _take_up(out, settings, say, restart=restart)
        if record.status == "complete":
            say(f"{out} is complete already")
            return ModelBundle.load(out)
        data = load_training_data(request.manifest, request.preprocess, request.source)
        say(
            f"{len(data.train.labels):,} images to train on, {len(data.validation.labels):,} to "
            f"validate by; {recipe.model} in {len(recipe.stages)} "
            f"stage{'s' * (len(recipe.stages) > 1)}, {workers.high} workers"
        )
        trained = fit(
            data,
            recipe,
            start.state_dict(),
            folder=folder,
            workers=workers,
            max_failures=means.max_failures,
            checkpoint_minutes=means.checkpoint_minutes,
            teachers=request.teachers,
        )
        bundle, evaluation = make_bundle(
            trained,
            data,
            recipe,
            about=_facts(request),
            pretraining=pretraining,
            settings={"num_workers": workers.high} | taught_by,
        )
        say("looking at the training lab's pictures as a whole, to know others from them")
        bundle = with_home(bundle, data.train_rows, data.validation_rows, request.source)
        if request.folds:
            logits = trained.logits.astype(np.float64) / bundle.calibration.temperature
            judged = _held_out(folder, request, means, say, restart=restart)
            bundle = with_review(bundle, judged, softmax(logits, axis=1).max(1))
        bundle = replace(bundle, elsewhere=request.elsewhere)
        bundle.save(out)
        report = report_training(bundle, out, trained, data, evaluation)
        record.history = trained.history
        record.status, record.finished = "complete", now()
        record.save()
        checkpoints.forget_all(folder)
    say(f"validation: {evaluation}")
    say(f"bundle {bundle.digest} is in {out}")
    say(f"report: {report}")
    return bundle


def _held_out(
    folder: str, request: TrainingRequest, means: Means, say: Say, *, restart: bool
) -> HeldOut:
    """Train without each fold in turn, in folders of their own, and judge it."""

    def trained(number: int, manifest: pa.Table) -> ModelBundle:
        place = storage.join(folder, f"fold-{number}")
        say(f"fold {number} of {request.folds}: training without it in {place}")
        alone = replace(request, manifest=manifest, folds=0, elsewhere=None)
        return train_bundle(place, alone, means, say, restart=restart)

    return out_of_fold(request.manifest, request.folds, trained, request.source)


def _take_up(out: str, settings: dict[str, Any], say: Say, *, restart: bool) -> TrainingRecord:
    """Go on with the training that is there, or begin one."""
    folder = training_folder(out)
    found = None if restart else open_training(folder)
    if found is not None:
        found.require_same(settings)
        if found.status == "running":
            say(f"going on with the training in {folder}")
        return found
    if not restart and storage.exists(storage.join(out, MANIFEST_NAME)):
        raise RunError(
            f"{out} holds a bundle that was not trained there; choose another --out, or replace it "
            "with --restart"
        )
    checkpoints.forget_all(folder)
    record = TrainingRecord(folder=folder, settings=settings)
    record.save()
    return record


def _facts(request: TrainingRequest) -> dict[str, Any]:
    """Return what the model card says of the data."""
    left_out: dict[str, int] = {}
    columns = (request.manifest[name].to_pylist() for name in ("used", "split", "findings"))
    for is_used, split, findings in zip(*columns, strict=True):
        if is_used and split in ("train", "val"):
            continue
        reason = findings[0].replace("_", " ") if findings else f"kept for {split or 'nothing'}"
        left_out[reason] = left_out.get(reason, 0) + 1
    return {
        "about": request.about,
        "stores": sorted({storage.name_of(uri) for uri in request.stores}),
        "left_out": dict(sorted(left_out.items())),
    }
