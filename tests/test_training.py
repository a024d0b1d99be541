"""Training in workers: what is seen is what was planned, ranks agree, and nothing is lost."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch

from bloodcells.augment import Augmentation, augment, image_keys, toned
from bloodcells.augment.geometry import with_margin
from bloodcells.cells import CLASSES
from bloodcells.errors import ConfigurationError, RunIncompleteError, StoreError
from bloodcells.imaging import Preprocess, Tone, decode
from bloodcells.models import create_model, head_parameters
from bloodcells.training.fit import Workers, bounds_of, fit, require_enough_images, workers_for
from bloodcells.training.ingest import (
    MaterialisedPixels,
    StoredPixels,
    TrainingData,
    load_training_data,
)
from bloodcells.training.loop import StagedTraining, TrainedModel, TrainingTask
from bloodcells.training.recipe import Recipe, Stage
from bloodcells.training.record import TrainingRecord, open_training
from bloodcells.training.shipping import make_bundle
from tests.manifests import manifest_of, write_cells

PER_CLASS = 14
PREPROCESS = Preprocess(size=32, crop=0.65)
RECIPE = Recipe(
    model="custom_cnn",
    stages=(
        Stage(name="head", unfreeze="head", epochs=1, train_batch_norm=False),
        Stage(
            name="all", epochs=3, schedule="constant", train_batch_norm=False, learning_rate=1e-4
        ),
    ),
    batch_size=16,
    dropout=0.0,
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    return manifest_of(write_cells(tmp_path_factory.mktemp("cells") / "cells", PER_CLASS))


@pytest.fixture(scope="module")
def data(manifest: pa.Table, ray_cluster: None) -> TrainingData:
    return load_training_data(manifest, PREPROCESS, "cells")


@pytest.fixture(scope="module")
def start() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return create_model("custom_cnn").state_dict()


def run(data: TrainingData, start: dict[str, torch.Tensor], folder: Path, **more: object):
    if not (folder / "training.json").exists():
        TrainingRecord(folder=str(folder), settings={}).save()
    settings = {"recipe": RECIPE, "workers": workers_for("2")} | more
    recipe = settings.pop("recipe")
    return fit(data, recipe, start, folder=str(folder), **settings)


@pytest.fixture(scope="module")
def by_two(
    data: TrainingData, start: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> TrainedModel:
    return run(data, start, tmp_path_factory.mktemp("two"))


def losses(trained: TrainedModel) -> list[float]:
    return [loss for epoch in trained.history for loss in epoch["step_losses"]]


# Ingest ----------------------------------------------------------------------------------------


def test_margin_keeps_the_scale() -> None:
    field = with_margin(Preprocess(size=96, crop=0.5))
    assert field.crop == pytest.approx(0.775)
    assert field.size / field.crop == pytest.approx(96 / 0.5, rel=0.01)
    assert with_margin(Preprocess(size=96, crop=0.8)).crop == 1


def test_validation_sees_what_scoring_sees(data: TrainingData) -> None:
    pixels = data.validation.pixels.take(np.arange(len(data.validation.labels)))
    for row, shown, label in zip(
        data.validation_rows.to_pylist(), pixels, data.validation.labels, strict=True
    ):
        encoded = Path(row["image_uri"]).read_bytes()
        assert np.array_equal(shown, decode(encoded, PREPROCESS).pixels)
        assert row["label"] == CLASSES[label]


def test_pixels_are_the_same_kept_or_read_anew(
    manifest: pa.Table, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bloodcells.training.ingest.STORE_SHARE", 0.0)
    other = load_training_data(manifest, PREPROCESS, "cells")
    assert isinstance(data.train.pixels, MaterialisedPixels)
    assert isinstance(other.train.pixels, StoredPixels)
    rows = np.array([5, 0, 5, 77, 3])
    assert np.array_equal(data.train.pixels.take(rows), other.train.pixels.take(rows))
    assert np.array_equal(data.train.labels, other.train.labels)


def test_an_image_that_changed_is_refused(tmp_path: Path, ray_cluster: None) -> None:
    store = write_cells(tmp_path / "cells", 2)
    manifest = manifest_of(store, lambda name: "val" if "000" in name else "train")
    changed = store / "monocyte" / "001.jpg"
    changed.write_bytes((store / "monocyte" / "000.jpg").read_bytes())
    with pytest.raises(StoreError, match=r"monocyte/001\.jpg has changed since .* prepare"):
        load_training_data(manifest, PREPROCESS, "cells")
    changed.unlink()
    with pytest.raises(StoreError, match=r"monocyte/001\.jpg can no longer be read"):
        load_training_data(manifest, PREPROCESS, "cells")


def test_every_class_needs_images_of_both_kinds(manifest: pa.Table, ray_cluster: None) -> None:
    rows = manifest.to_pylist()
    few = [r for r in rows if r["label"] != "platelet" or r["split"] == "val"]
    table = pa.Table.from_pylist(few, schema=manifest.schema)
    with pytest.raises(StoreError, match="cells: no training image of platelet; every class"):
        load_training_data(table, PREPROCESS, "cells")


# Workers ---------------------------------------------------------------------------------------


def test_an_epoch_shows_exactly_what_was_planned(by_two: TrainedModel, data: TrainingData) -> None:
    counts = data.train.counts()
    assert counts.tolist() == [PER_CLASS - 2] * 8
    for epoch in by_two.history:
        assert epoch["images"] == counts.sum()
        assert len(epoch["step_losses"]) == 6
    assert [(e["stage_name"], e["epoch"]) for e in by_two.history] == [
        *(("head", 1), ("all", 1), ("all", 2), ("all", 3))
    ]


def test_two_workers_follow_the_curve_of_one_with_twice_the_batch(
    by_two: TrainedModel, data: TrainingData, start: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    by_one = run(data, start, tmp_path, workers=workers_for("1"))
    assert losses(by_one) == pytest.approx(losses(by_two), rel=2e-4)
    for name in ("val_loss", "val_accuracy", "accuracy"):
        assert [e[name] for e in by_one.history] == pytest.approx(
            [e[name] for e in by_two.history], rel=2e-3
        )


def kill_a_worker_when(folder: Path, num_checkpoints: int) -> threading.Thread:
    """Kill a training worker once ``num_checkpoints`` checkpoints have been seen."""

    def wait_and_kill() -> None:
        seen: set[str] = set()
        while len(seen) < num_checkpoints:
            seen |= {path.name for path in folder.glob("checkpoint-*")}
            time.sleep(0.005)
        workers = [
            process
            for process in psutil.Process().children(recursive=True)  # no one else's
            if "RayTrainWorker" in " ".join(process.cmdline())
        ]
        workers[0].kill()

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()
    return thread


def test_a_killed_worker_costs_nothing_but_time(
    by_two: TrainedModel, data: TrainingData, start: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Killed with no new start allowed, and then, by the same call, with one."""
    every_step = {"checkpoint_minutes": 1e-6}
    first = kill_a_worker_when(tmp_path, 1)
    with pytest.raises(RunIncompleteError, match="run the same command again to go on"):
        run(data, start, tmp_path, max_failures=0, **every_step)
    first.join(10)
    second = kill_a_worker_when(tmp_path, 3)
    trained = run(data, start, tmp_path, max_failures=1, **every_step)
    second.join(10)
    assert not second.is_alive()
    assert losses(trained) == pytest.approx(losses(by_two), rel=1e-4)
    assert [e["images"] for e in trained.history] == [e["images"] for e in by_two.history]
    record = open_training(str(tmp_path))
    assert record is not None
    assert len(record.history) == len(by_two.history)
    assert list((tmp_path / "tensorboard").iterdir())


# One rank --------------------------------------------------------------------------------------


def test_a_stage_that_diverges_leaves_the_model_as_it_was(
    data: TrainingData, start: dict[str, torch.Tensor]
) -> None:
    wild = Stage(name="wild", epochs=2, optimizer="adam", learning_rate=9.9, schedule="constant")
    lines: list[str] = []
    recipe = replace(RECIPE, stages=(wild,), augmentation=Augmentation.parse("none"))
    task = TrainingTask(recipe=recipe, data=data, weights=dict(start))
    trained = StagedTraining(task, say=lines.append).run()
    assert all(torch.isfinite(value).all() for value in trained.weights.values())


@pytest.mark.parametrize(("most_cost", "outcome"), [(1.0, "kept"), (-1.0, "undone")])
def test_a_stage_may_end_by_recalling_first_weights(
    most_cost: float,
    outcome: str,
    data: TrainingData,
    start: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bloodcells.training.stage_run.MOST_COST", most_cost)
    stage = Stage(name="all", epochs=2, schedule="constant", averaging=0.5)
    lines: list[str] = []

    def trained(stage: Stage) -> TrainedModel:
        recipe = replace(RECIPE, stages=(stage,), metric="val_loss")
        task = TrainingTask(recipe=recipe, data=data, weights=dict(start))
        return StagedTraining(task, say=lines.append).run()

    plain = trained(stage).weights
    mixed = trained(replace(stage, recall=0.25))
    recalled = mixed.weights
    share = 0.25 if outcome == "kept" else 0.0
    kernels = [f"backbone.blocks.{block}.0.weight" for block in range(4)]
    for name in kernels:
        assert not torch.equal(plain[name], start[name].half())
        expected = plain[name].float().lerp(start[name], share)
        assert torch.allclose(recalled[name].float(), expected, atol=1e-3)
        assert torch.equal(plain[name], recalled[name]) == (outcome == "undone")
    for name in head_parameters(create_model("custom_cnn")):
        assert torch.equal(plain[name], recalled[name])
    assert "with 25% of the first weights" in lines[-1] and lines[-1].endswith(outcome)
    recipe = replace(RECIPE, stages=(replace(stage, recall=0.25),))
    bundle, _ = make_bundle(mixed, data, recipe, about={}, pretraining="", settings={})
    assert bundle.facts["recipe"]["stages"][0]["recall"] == share


def test_recall_is_for_stages_that_train_everything() -> None:
    with pytest.raises(ConfigurationError, match="recall is for a stage that trains everything"):
        Stage(name="head", unfreeze="head", recall=0.2)
    assert [s.recall for s in Recipe().stages] == [0.0, 0.2]
    assert [s.recall for s in Recipe().without_recall().stages] == [0.0, 0.0]


def test_two_images_of_a_batch_are_varied_differently(data: TrainingData) -> None:
    task = TrainingTask(recipe=RECIPE, data=data, weights=create_model("custom_cnn").state_dict())
    training = StagedTraining(task)
    plan = training.plan()
    batch = training.feed(plan).batch(0)
    repeated = replace(plan, rows=np.zeros_like(plan.rows))
    same = training.feed(repeated).batch(0)
    assert batch.pixels.shape == (16, 32, 32, 3)
    assert batch.targets.sum(1).tolist() == [1.0] * 16
    assert len({view.numpy().tobytes() for view in same.pixels}) == 1, "same image, same key"
    plan_of_repeats = replace(repeated, occurrence=np.arange(len(plan.rows)))
    views = training.feed(plan_of_repeats).batch(0).pixels
    assert len({view.numpy().tobytes() for view in views}) == 16


def test_a_stage_may_augment_less(data: TrainingData) -> None:
    task = TrainingTask(recipe=RECIPE, data=data, weights=create_model("custom_cnn").state_dict())
    training = StagedTraining(task)
    plan = training.plan()
    still = training.feed(plan, 0.0).batch(0).pixels
    rows = plan.rows[plan.of_rank(0, 0, 1)]
    fields = torch.from_numpy(data.train.pixels.take(rows))
    keys = np.zeros(len(rows), np.uint64)
    assert torch.equal(still, augment(fields, 32, Augmentation.parse("none"), keys))
    apart = [
        float((training.feed(plan, share).batch(0).pixels.float() - still.float()).abs().mean())
        for share in (0.2, 1.0)
    ]
    assert 0 < apart[0] < apart[1]


def test_what_is_fed_is_evened_and_bent(data: TrainingData) -> None:
    task = TrainingTask(recipe=RECIPE, data=data, weights=create_model("custom_cnn").state_dict())
    training = StagedTraining(task)
    settings = Augmentation.parse("flips,power=0.5")
    feed = replace(
        training.feed(training.plan()),
        augmentation=settings,
        preprocess=replace(PREPROCESS, tone=Tone()),
    )
    places = feed.plan.of_rank(0, 0, 1)
    rows, shown = feed.plan.rows[places], feed.plan.occurrence[places]
    keys = image_keys(feed.seed, 0, data.train.image_ids[rows], shown)
    views = augment(torch.from_numpy(data.train.pixels.take(rows)), 32, settings, keys)
    fed = feed.batch(0).pixels
    assert torch.equal(fed, toned(views, Tone(), settings, keys))
    assert not torch.equal(fed, toned(views, Tone(), Augmentation.parse("flips"), keys))


def test_how_the_cluster_is_divided(ray_cluster: None) -> None:
    assert workers_for(None) == Workers(
        low=2, high=2, use_gpu=False, num_threads=1, cpus=1, feed_cpus=0.0, feed_tasks=1
    )
    assert workers_for("1").num_threads == 2
    assert (workers_for("1:8").low, workers_for("1:8").high) == (1, 8)
    with pytest.raises(ConfigurationError, match=r"--num-workers 64.*the cluster has 2"):
        workers_for("64")
    for wrong in ("0", "two", "3:2", ":"):
        with pytest.raises(ConfigurationError, match=f"--num-workers {wrong}: give N or MIN:MAX"):
            bounds_of(wrong)


def test_a_worker_needs_two_images_in_each_step() -> None:
    eight = Workers(
        low=8, high=8, use_gpu=False, num_threads=1, cpus=1, feed_cpus=0.0, feed_tasks=1
    )
    require_enough_images(np.full(8, 4), replace(RECIPE, batch_size=16), eight)
    with pytest.raises(ConfigurationError, match=r"--num-workers 8: a step has 8.*at most 4"):
        require_enough_images(np.full(8, 1), replace(RECIPE, batch_size=16), eight)
