"""Train a classifier: ``python -m jobs.train --dataset DATASET --out BUNDLE``.

The job, top-down: check what was asked, take the training folder's lease, decode the dataset, train
(or go on from the newest checkpoint), calibrate, save the bundle, draw the report.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from bloodcells import storage
from bloodcells.bundle import MANIFEST_NAME, ModelBundle
from bloodcells.datasets import open_dataset, read_manifest, require_trainable
from bloodcells.errors import ConfigurationError, RunError
from bloodcells.grouping import Grouping
from bloodcells.imaging import Preprocess
from bloodcells.lease import Lease
from bloodcells.models import (
    DEFAULT_MODEL,
    FLAGSHIP_MODEL,
    default_model,
    require_size,
    start_model,
)
from bloodcells.pipeline.cluster import cluster_device, start_ray
from bloodcells.pipeline.preparing import build_manifest
from bloodcells.runs import now
from bloodcells.splits import read_split_table
from bloodcells.stores import open_store
from bloodcells.training import checkpoints
from bloodcells.training.fit import bounds_of, fit, workers_for
from bloodcells.training.ingest import digest_of, load_training_data
from bloodcells.training.recipe import AUTO, Recipe, read_recipe
from bloodcells.training.record import TrainingRecord, open_training, training_folder
from bloodcells.training.shipping import make_bundle
from jobs.flags import flag, parse, run_job
from jobs.progress import say


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a classifier with Ray Train and save it as a model bundle; the same command goes on."""

    out: str = flag("folder of the bundle, local or s3://")
    dataset: str | None = flag("what jobs.prepare made", default=None)
    store: tuple[str, ...] = flag(
        "instead of a dataset: labelled store, prepared on the way; repeatable", default=()
    )
    splits: str | None = flag(
        "with --store: CSV with columns shard, member, split (train, val, test)", default=None
    )
    model: str | None = flag(
        "architecture: custom_cnn, vgg16, efficientnetv2_m, any timm name …; by default "
        f"{FLAGSHIP_MODEL} on GPUs, {DEFAULT_MODEL} on CPUs",
        default=None,
    )
    weights: str | None = flag("pretrained weights: safetensors or pth file, URI", default=None)
    from_scratch: bool = flag("start from random weights", default=False)
    recipe: str = flag("default, report, or URI of a JSON file", default="default")
    optimizer: str | None = flag("lion, adam or adamw, in every stage", default=None)
    epochs: int | None = flag("most epochs of the longest stage", default=None)
    size: int = flag("side of the pictures that the model sees, in px", default=96)
    crop: float = flag("centred square that is kept, in shorter sides of an image", default=0.65)
    num_workers: str | None = flag(
        "N or MIN:MAX; by default one a GPU, else up to two", default=None
    )
    max_failures: int = flag("how often workers that died are started anew", default=3)
    checkpoint_minutes: float = flag(
        "most minutes between two checkpoints; there is one after every epoch", default=10.0
    )
    seed: int | None = flag("of everything that is drawn, instead of the recipe's", default=None)
    about_data: str = flag("source and licence of the images, for the model card", default="")
    restart: bool = flag("throw away what is in the training folder", default=False)

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is started."""
        if (self.dataset is None) == (not self.store):
            raise ConfigurationError("give either --dataset, which jobs.prepare made, or --store")
        if self.splits and self.dataset:
            raise ConfigurationError("--splits goes with --store; a dataset has its splits already")
        if self.weights and self.from_scratch:
            raise ConfigurationError("--weights and --from-scratch exclude each other")
        if self.num_workers is not None:
            bounds_of(str(self.num_workers))
        if self.max_failures < 0:
            raise ConfigurationError(f"--max-failures {self.max_failures}: give 0 or more")
        if not self.checkpoint_minutes > 0:
            raise ConfigurationError(
                f"--checkpoint-minutes {self.checkpoint_minutes}: give more than 0"
            )
        self.preprocess()

    def preprocess(self) -> Preprocess:
        """Return how the model will see images."""
        return Preprocess(size=self.size, crop=self.crop)


def main() -> int:
    """Run the job from the command line; returns the exit code."""
    config = parse(TrainConfig, "train")
    return run_job(lambda: train(config))


def train(config: TrainConfig) -> ModelBundle:
    """Train, calibrate and save a bundle, or go on with a training that is there.

    Raises:
        BloodcellsError: the dataset, a store or a setting cannot be used, or training stopped; the
            message says how to go on.
    """
    recipe = read_recipe(config.recipe).changed(
        model=config.model, optimizer=config.optimizer, epochs=config.epochs, seed=config.seed
    )
    if recipe.model != AUTO:
        require_size(recipe.model, config.size)
    splits = read_split_table(config.splits) if config.splits else None
    if config.store:
        open_store(config.store).require_apart_from(storage.normalise(config.out))
    manifest = read_manifest(config.dataset) if config.dataset else None
    out = storage.normalise(config.out)
    start_ray()
    workers = workers_for(config.num_workers)
    if recipe.model == AUTO:
        recipe = replace(recipe, model=default_model(cluster_device()))
    if recipe.has_idle_weights:
        say("warning: class weights are idle, as balancing shows all classes equally often")
    weights, pretraining = start_model(
        recipe.model, weights=config.weights, from_scratch=config.from_scratch
    )
    folder = training_folder(out)
    with Lease(folder):
        if manifest is None:
            prepared = build_manifest(config.store, grouping=Grouping(splits=splits))
            manifest = prepared.manifest
            for warning in require_trainable(manifest, config.store, prepared.num_ignored):
                say(f"warning: {warning}")
        settings = {
            "recipe": recipe.to_dict(),
            "preprocess": config.preprocess().to_dict(),
            "data": digest_of(manifest),
            "pretraining": pretraining,
        }
        record = _take_up(out, settings, restart=config.restart)
        if record.status == "complete":
            say(f"{out} is complete already")
            return ModelBundle.load(out)
        data = load_training_data(manifest, config.preprocess(), config.dataset or config.store[0])
        say(_about(manifest, data.train_rows, data.validation_rows, recipe))
        trained = fit(
            data,
            recipe,
            weights.state_dict(),
            folder=folder,
            workers=workers,
            max_failures=config.max_failures,
            checkpoint_minutes=config.checkpoint_minutes,
        )
        bundle, evaluation = make_bundle(
            trained,
            data,
            recipe,
            about=_facts(config, manifest),
            pretraining=pretraining,
            settings={"num_workers": workers.high},
        )
        bundle.save(out)
        record.history = trained.history
        record.status, record.finished = "complete", now()
        record.save()
        checkpoints.forget_all(folder)
    print(f"validation: {evaluation}")
    print(f"bundle {bundle.digest} is in {out}")
    return bundle


def _take_up(out: str, settings: dict[str, Any], *, restart: bool) -> TrainingRecord:
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


def _facts(config: TrainConfig, manifest: pa.Table) -> dict[str, Any]:
    stores = open_dataset(config.dataset).stores if config.dataset else config.store
    findings: dict[str, int] = {}
    for used, split, found in zip(
        manifest["used"].to_pylist(),
        manifest["split"].to_pylist(),
        manifest["findings"].to_pylist(),
        strict=True,
    ):
        if not used or split not in ("train", "val"):
            reason = found[0].replace("_", " ") if found else f"kept for {split or 'nothing'}"
            findings[reason] = findings.get(reason, 0) + 1
    return {
        "about": config.about_data,
        "stores": sorted({storage.name_of(uri) for uri in stores}),
        "left_out": dict(sorted(findings.items())),
    }


def _about(manifest: pa.Table, train: pa.Table, validation: pa.Table, recipe: Recipe) -> str:
    rest = len(manifest) - len(train) - len(validation)
    return (
        f"{len(train):,} images to train on, {len(validation):,} to validate by, {rest:,} left "
        f"out; {recipe.model}, {len(recipe.stages)} stage{'s' * (len(recipe.stages) > 1)}"
    )


if __name__ == "__main__":
    sys.exit(main())
