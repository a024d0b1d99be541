"""Train a classifier: ``python -m jobs.train --dataset DATASET --out BUNDLE``.

The same command goes on where a killed one was. Exit codes: 0 done, 1 refused or failed, 2 wrong
usage, 3 workers failed too often (run the same command again), 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from bloodcells import storage
from bloodcells.bundle import ModelBundle
from bloodcells.datasets import open_dataset, read_manifest, require_trainable
from bloodcells.errors import ConfigurationError
from bloodcells.grouping import Grouping
from bloodcells.imaging import Preprocess
from bloodcells.models import DEFAULT_MODEL, FLAGSHIP_MODEL, require_size
from bloodcells.pipeline.cluster import start_ray
from bloodcells.pipeline.preparing import build_manifest
from bloodcells.splits import Split, read_split_table
from bloodcells.stores import open_store
from bloodcells.training.fit import bounds_of
from bloodcells.training.presets import PRESETS, read_recipe
from bloodcells.training.recipe import AUTO
from bloodcells.training.run import Means, TrainingRequest, resolved, train_bundle
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
    recipe: str = flag(f"{', '.join(PRESETS)}, or URI of a JSON file", default="default")
    teacher: tuple[str, ...] = flag(
        "bundle whose network the new one learns from, with --recipe taught; repeatable", default=()
    )
    optimizer: str | None = flag("lion, adam or adamw, in every stage", default=None)
    epochs: int | None = flag("most epochs of the longest stage", default=None)
    size: int = flag("side of the pictures that the model sees, in px", default=128)
    crop: float = flag("centred square that is kept, in shorter sides of an image", default=0.65)
    num_workers: str | None = flag(
        "N or MIN:MAX; by default one a GPU, else up to two", default=None
    )
    max_failures: int = flag("how often workers that died are started anew", default=3)
    checkpoint_minutes: float = flag(
        "most minutes between two checkpoints; there is one after every epoch", default=10.0
    )
    seed: int | None = flag("of everything that is drawn, instead of the recipe's", default=None)
    folds: int = flag(
        "so many further trainings, each without a fold of the images, to decide by all of them "
        "which cells a person should look at; 0 to decide by the validation images",
        default=0,
    )
    elsewhere_bundle: str | None = flag(
        "bundle whose network is to see the pictures of other labs; by default the new one's own",
        default=None,
    )
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
        if self.folds < 0 or self.folds == 1:
            raise ConfigurationError(f"--folds {self.folds}: give 2 or more, or 0 for none")
        Preprocess(size=self.size, crop=self.crop)


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
    if recipe.has_idle_weights:
        say("warning: class weights are idle: balancing shows all classes equally often already")
    splits = read_split_table(config.splits) if config.splits else None
    elsewhere = ModelBundle.load(config.elsewhere_bundle) if config.elsewhere_bundle else None
    teachers = [ModelBundle.load(uri) for uri in config.teacher]
    out = storage.normalise(config.out)
    if config.dataset:
        manifest, stores = read_manifest(config.dataset), open_dataset(config.dataset).stores
        start_ray()
    else:
        stores = open_store(config.store).uris
        open_store(config.store).require_apart_from(out)
        start_ray()
        manifest = _prepared(config.store, splits)
    preprocess = recipe.preprocess(config.size, config.crop)
    request = TrainingRequest(
        manifest=manifest,
        source=config.dataset or f"--store {' '.join(config.store)}",
        stores=stores,
        recipe=resolved(recipe, preprocess),
        preprocess=preprocess,
        weights=config.weights,
        from_scratch=config.from_scratch,
        about=config.about_data,
        folds=config.folds,
        elsewhere=elsewhere,
        teachers=teachers,
    )
    means = Means(
        num_workers=config.num_workers,
        max_failures=config.max_failures,
        checkpoint_minutes=config.checkpoint_minutes,
    )
    return train_bundle(out, request, means, say, restart=config.restart)


def _prepared(stores: Sequence[str], splits: dict[tuple[str, str], Split] | None) -> pa.Table:
    """Prepare stores on the way, as jobs.prepare does, but keep no dataset."""
    prepared = build_manifest(stores, grouping=Grouping(splits=splits))
    for warning in require_trainable(prepared.manifest, stores, prepared.num_ignored):
        say(f"warning: {warning}")
    return prepared.manifest


if __name__ == "__main__":
    sys.exit(main())
