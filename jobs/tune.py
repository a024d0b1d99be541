"""Search for a better recipe: ``python -m jobs.tune --dataset DATASET --out STUDY``.

The same command goes on where a killed one was; more ``--trials`` make a study longer. Exit codes:
0 done, 1 refused or failed, 2 wrong usage, 3 trials are left over (run the same command again), 130
interrupted.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from bloodcells import storage
from bloodcells.datasets import open_dataset, read_manifest
from bloodcells.errors import ConfigurationError
from bloodcells.imaging import Preprocess
from bloodcells.models import DEFAULT_MODEL, FLAGSHIP_MODEL, require_size
from bloodcells.pipeline.cluster import start_ray
from bloodcells.training.presets import read_recipe
from bloodcells.training.recipe import AUTO
from bloodcells.training.run import TrainingRequest, resolved
from bloodcells.training.study import StudyRecord
from bloodcells.training.study_run import tune_recipe
from jobs.flags import flag, parse, run_job
from jobs.progress import say


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Search around a recipe with Ray Tune and save the best one; the same command goes on."""

    dataset: str = flag("what jobs.prepare made")
    out: str = flag("folder of the study, local or s3://")
    recipe: str = flag(
        "middle of the search: default, report, or URI of a JSON file", default="default"
    )
    model: str | None = flag(
        f"architecture; by default {FLAGSHIP_MODEL} on GPUs, {DEFAULT_MODEL} on CPUs", default=None
    )
    weights: str | None = flag("pretrained weights: safetensors or pth file, URI", default=None)
    from_scratch: bool = flag("start from random weights", default=False)
    trials: int = flag("trials in all, the recipe as it is among them", default=20)
    epochs: int | None = flag("most epochs of the recipe's longest stage", default=None)
    metric: str | None = flag(
        "val_accuracy, val_macro_f1 or val_loss, instead of the recipe's", default=None
    )
    size: int = flag("side of the pictures that the model sees, in px", default=96)
    crop: float = flag("centred square that is kept, in shorter sides of an image", default=0.65)
    seed: int | None = flag("of everything that is drawn, instead of the recipe's", default=None)
    restart: bool = flag("throw away the study that is there", default=False)

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is started."""
        if self.trials < 1:
            raise ConfigurationError(f"--trials {self.trials}: give 1 or more")
        if self.weights and self.from_scratch:
            raise ConfigurationError("--weights and --from-scratch exclude each other")
        Preprocess(size=self.size, crop=self.crop)


def main() -> int:
    """Run the job from the command line; returns the exit code."""
    config = parse(TuneConfig, "tune")
    return run_job(lambda: search(config))


def search(config: TuneConfig) -> StudyRecord:
    """Run a study, or go on with one that is there.

    Raises:
        BloodcellsError: the dataset or a setting cannot be used, all trials failed, or some are
            left over; the message says how to go on.
    """
    recipe = read_recipe(config.recipe).changed(
        model=config.model, epochs=config.epochs, seed=config.seed
    )
    if config.metric is not None:
        recipe = replace(recipe, metric=config.metric)
    if recipe.model != AUTO:
        require_size(recipe.model, config.size)
    manifest, stores = read_manifest(config.dataset), open_dataset(config.dataset).stores
    start_ray()
    preprocess = recipe.preprocess(config.size, config.crop)
    request = TrainingRequest(
        manifest=manifest,
        source=config.dataset,
        stores=stores,
        recipe=resolved(recipe, preprocess),
        preprocess=preprocess,
        weights=config.weights,
        from_scratch=config.from_scratch,
    )
    return tune_recipe(
        storage.normalise(config.out), request, config.trials, say, restart=config.restart
    )


if __name__ == "__main__":
    sys.exit(main())
