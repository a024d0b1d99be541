"""Compare models under one recipe: ``python -m jobs.compare --dataset DATASET --out TABLE``.

Each model is trained (a killed comparison goes on where it was), then tested on the dataset's test
images and on every store from elsewhere. Writes ``compare.json``, ``compare.md``, ``report.html``.
Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 workers failed too often, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from bloodcells import storage
from bloodcells.bundle import ModelBundle
from bloodcells.cells import CLASSES
from bloodcells.datasets import open_dataset, read_manifest
from bloodcells.errors import ConfigurationError, StoreError
from bloodcells.imaging import Preprocess
from bloodcells.manifest import Rules
from bloodcells.models import require_size, start_model
from bloodcells.pipeline.cluster import cluster_device, start_ray
from bloodcells.pipeline.preparing import build_manifest
from bloodcells.report.comparison import write_comparison_report
from bloodcells.training.comparison import (
    HOME,
    MODELS,
    Row,
    evaluate_on,
    markdown,
    tables_of,
    test_rows,
)
from bloodcells.training.folds import folds_of
from bloodcells.training.ingest import ImageSet, load_images
from bloodcells.training.presets import read_recipe
from bloodcells.training.record import open_training, training_folder
from bloodcells.training.run import Means, TrainingRequest, train_bundle
from jobs.flags import flag, parse, run_job
from jobs.progress import say

_LOOKED_FOR = ("blank", "blurred", "alien", "near_duplicate")
"""Findings in spite of which an image from elsewhere is tested on: it is what it is."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Train several models under one recipe and compare them, at home and elsewhere."""

    dataset: str = flag("what jobs.prepare made")
    out: str = flag("folder of the comparison; an unfinished one there goes on")
    models: str = flag("names, comma-separated", default=",".join(MODELS))
    elsewhere: tuple[str, ...] = flag("labelled store of another lab; repeatable", default=())
    weights: tuple[str, ...] = flag("pretrained weights, NAME=URI; repeatable", default=())
    from_scratch: bool = flag("start every model from random weights", default=False)
    recipe: str = flag("default, report, or URI of a JSON file", default="default")
    optimizer: str | None = flag("lion, adam or adamw, in every stage", default=None)
    epochs: int | None = flag("most epochs of the longest stage", default=None)
    folds: int | None = flag("cross-validate in so many folds", default=None)
    size: int = flag("side of the pictures that the models see, in px", default=96)
    crop: float = flag("centred square that is kept, in shorter sides of an image", default=0.65)
    num_workers: str | None = flag("N or MIN:MAX, as for jobs.train", default=None)

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is started."""
        if not self.names:
            raise ConfigurationError("--models is empty; name at least one")
        if self.folds is not None and self.folds < 2:
            raise ConfigurationError(f"--folds {self.folds}: give 2 or more, or leave it out")
        for each in self.weights:
            name, _, uri = each.partition("=")
            if name not in self.names or not uri:
                raise ConfigurationError(f"--weights {each}: give NAME=URI, NAME one of --models")
        Preprocess(size=self.size, crop=self.crop)

    @property
    def names(self) -> list[str]:
        """The models, in the order given, each once."""
        return list(dict.fromkeys(n.strip() for n in self.models.split(",") if n.strip()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job from the command line; returns the exit code."""
    config = parse(CompareConfig, "compare", argv)
    return run_job(lambda: compare(config))


def compare(config: CompareConfig) -> list[Row]:
    """Train and test all models, and write the comparison.

    Raises:
        BloodcellsError: the dataset, a store or a setting cannot be used, or a training stopped;
            the same command goes on.
    """
    out = storage.normalise(config.out)
    preprocess = read_recipe(config.recipe).preprocess(config.size, config.crop)
    for name in config.names:
        require_size(name, config.size)
    manifest = read_manifest(config.dataset)
    start_ray()
    sets = {HOME: load_images(test_rows(manifest), preprocess, config.dataset)[0]}
    if not len(sets[HOME].labels):
        raise StoreError(f"{config.dataset} holds no test image; prepare it with some")
    for uri in config.elsewhere:
        sets[_name_of(uri, sets)] = _load_elsewhere(uri, preprocess)
    manifests = folds_of(manifest, config.folds) if config.folds else [manifest]
    rows: list[Row] = []
    for name in config.names:
        rows.append(_compare_one(name, config, out, manifests, sets))
        _write(out, config, rows, sets)  # after each: a killed comparison shows the rest
    print(markdown(tables_of(rows, list(sets)), _about(config, sets)))
    print(f"report: {storage.join(out, 'report.html')}")
    return rows


def _compare_one(
    name: str,
    config: CompareConfig,
    out: str,
    manifests: Sequence[pa.Table],
    sets: dict[str, ImageSet],
) -> Row:
    """Train one model, in every fold, and test it on all sets."""
    recipe = read_recipe(config.recipe).changed(
        model=name, optimizer=config.optimizer, epochs=config.epochs
    )
    weights = dict(each.split("=", 1) for each in config.weights).get(name)
    from_scratch = config.from_scratch or not _has_weights(name, weights)
    if from_scratch and weights is None:
        say(f"{name}: from random weights")
    evaluations: dict[str, list[Any]] = {each: [] for each in sets}
    folder = storage.join(out, "models", name)
    bundles: list[ModelBundle] = []
    seconds, epochs = 0.0, 0
    for number, manifest in enumerate(manifests):
        place = folder if len(manifests) == 1 else storage.join(folder, f"fold-{number + 1}")
        request = TrainingRequest(
            manifest=manifest,
            source=config.dataset,
            stores=open_dataset(config.dataset).stores,
            recipe=recipe,
            preprocess=recipe.preprocess(config.size, config.crop),
            weights=weights,
            from_scratch=from_scratch,
        )
        say(f"{name}{f', fold {number + 1}' if len(manifests) > 1 else ''}: training in {place}")
        bundle = train_bundle(place, request, Means(num_workers=config.num_workers), say)
        bundles.append(bundle)
        for each, images in sets.items():
            evaluations[each].append(evaluate_on(bundle, images, device=cluster_device()))
        record = open_training(training_folder(place))
        history = record.history if record else []
        seconds += sum(figures["seconds"] for figures in history)
        epochs = max(epochs, len(history))
    return Row(
        model=name,
        optimizer=recipe.stages[-1].optimizer,
        pretraining=str(bundles[0].facts["pretraining"]),
        from_scratch=from_scratch,
        num_parameters=sum(p.numel() for p in bundles[0].build().parameters()),
        epochs=epochs,
        seconds=round(seconds, 1),
        digest=bundles[0].digest,
        sets=evaluations,
    )


def _has_weights(name: str, weights: str | None) -> bool:
    """Whether a model can start from pretrained weights; a file that was named must be usable."""
    if weights is not None:
        return True
    try:
        start_model(name)
    except ConfigurationError as error:
        say(f"warning: {error}")
        return False
    return True


def _load_elsewhere(uri: str, preprocess: Preprocess) -> ImageSet:
    """Decode the labelled images of another lab's store; what cannot be decoded is said."""
    prepared = build_manifest([uri], rules=Rules(keep=_LOOKED_FOR))
    usable = prepared.manifest.filter(prepared.manifest["used"])
    rest = len(prepared.manifest) - len(usable)
    if not len(usable):
        raise StoreError(f"--elsewhere {uri}: no labelled image that can be decoded; check it")
    if rest:
        say(f"warning: {uri}: {rest:,} images without a label, undecodable or twice are left out")
    return load_images(usable, preprocess, uri)[0]


def _name_of(uri: str, taken: dict[str, ImageSet]) -> str:
    """Return a short name for a store, unlike the others."""
    short = storage.name_of(uri).split(".")[0] or uri
    return uri if short in taken else short


def _about(config: CompareConfig, sets: dict[str, ImageSet]) -> dict[str, str]:
    dataset = open_dataset(config.dataset)
    counts = dataset.counts["splits"]
    trained = sum(counts["train"].values())
    return {
        "data": f"{', '.join(sorted(storage.name_of(u) for u in dataset.stores))}: {trained:,} "
        f"images to train on, {sum(counts['val'].values()):,} to validate by"
        + (f", divided anew into {config.folds} folds" if config.folds else ""),
        "tested on": ", ".join(
            f"{name} ({len(images.labels):,} images, {_num_classes(images)} classes)"
            for name, images in sets.items()
        ),
        "recipe": f"`{storage.name_of(config.recipe)}`, {config.size} px, crop {config.crop:g}"
        + (f", at most {config.epochs} epochs in the longest stage" if config.epochs else ""),
        "balanced": "mean recall of the classes that a set has; a class it lacks, where it is "
        "predicted, counts as wrong",
    }


def _num_classes(images: ImageSet) -> int:
    return int((images.counts() > 0).sum())


def _write(
    out: str,
    config: CompareConfig,
    rows: Sequence[Row],
    sets: dict[str, ImageSet],
) -> None:
    about, tables = _about(config, sets), tables_of(rows, list(sets))
    document = {
        "about": about,
        "recipe": read_recipe(config.recipe).to_dict(),
        "classes": list(CLASSES),
        "rows": [row.to_dict() for row in rows],
        "is_complete": len(rows) == len(config.names),
    }
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    storage.put(storage.join(out, "compare.json"), text.encode())
    storage.put(storage.join(out, "compare.md"), markdown(tables, about).encode())
    write_comparison_report(out, tables, about, len(config.names) - len(rows))


if __name__ == "__main__":
    sys.exit(main())
