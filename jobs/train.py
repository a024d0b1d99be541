"""Train a classifier on labelled stores: ``python -m jobs.train --store … --out BUNDLE``."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from bloodcells import storage
from bloodcells.bundle import ModelBundle
from bloodcells.errors import ConfigurationError
from bloodcells.imaging import Preprocess
from bloodcells.models import DEFAULT_MODEL, create_model
from bloodcells.pipeline.cluster import start_ray
from bloodcells.splits import read_splits
from bloodcells.stores import open_store
from bloodcells.training import Recipe, fit, load_labelled
from jobs.flags import flag, parse, run_job


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a classifier on labelled stores with Ray Train, and save it as a model bundle."""

    store: tuple[str, ...] = flag("labelled store, URI or glob, local or s3://; repeatable")
    out: str = flag("folder of the bundle, local or s3://")
    splits: str | None = flag(
        "CSV with columns shard, member, split (train, val; others are not read); "
        "without it a tenth of each class validates",
        default=None,
    )
    model: str = flag("architecture, as timm calls it", default=DEFAULT_MODEL)
    optimizer: str = flag("lion or adamw", default="lion")
    epochs: int = flag("passes over the training images", default=12)
    size: int = flag("side of the pictures that the model sees, in px", default=96)
    crop: float = flag("centred square that is kept, in shorter sides of an image", default=0.65)
    num_workers: int | None = flag("by default one a GPU, else up to two", default=None)
    seed: int = flag("of everything that is drawn", default=0)
    about_data: str = flag("source and licence of the images, for the model card", default="")

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is started."""
        if self.num_workers is not None and self.num_workers < 1:
            raise ConfigurationError(f"--num-workers {self.num_workers}: give 1 or more")
        self.recipe()
        self.preprocess()

    def recipe(self) -> Recipe:
        """Return how to train."""
        return Recipe(
            model=self.model,
            optimizer=self.optimizer,  # type: ignore[arg-type]  # checked by Recipe
            epochs=self.epochs,
            seed=self.seed,
        )

    def preprocess(self) -> Preprocess:
        """Return how the model will see images."""
        return Preprocess(size=self.size, crop=self.crop)


def main() -> int:
    """Run the job from the command line; returns the exit code."""
    config = parse(TrainConfig, "train")
    return run_job(lambda: train(config))


def train(config: TrainConfig) -> ModelBundle:
    """Train, calibrate and save a bundle.

    Raises:
        BloodcellsError: a store, the split table or a setting cannot be used; nothing was written.
    """
    recipe = config.recipe()
    create_model(recipe.model)
    open_store(config.store)
    splits = read_splits(config.splits) if config.splits else None
    out = storage.normalise(config.out)
    start_ray()
    data = load_labelled(config.store, config.preprocess(), splits)
    left_out = "".join(f"; left out: {n:,} {why}" for why, n in data.left_out.items())
    print(
        f"{(~data.is_validation).sum():,} images to train on, "
        f"{data.is_validation.sum():,} to validate{left_out}"
    )
    bundle, evaluation = fit(
        data,
        recipe,
        stores=config.store,
        about_data=config.about_data,
        num_workers=config.num_workers,
    )
    bundle.save(out)
    print(f"validation: {evaluation}")
    print(f"bundle {bundle.digest} is in {out}")
    return bundle


if __name__ == "__main__":
    sys.exit(main())
