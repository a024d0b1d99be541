"""jobs.train: from a dataset or a store to a bundle with its report, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bloodcells import storage
from bloodcells.bundle import ModelBundle
from bloodcells.cells import CLASSES
from bloodcells.errors import (
    ConfigurationError,
    DatasetError,
    NotFoundError,
    RunError,
    RunMismatchError,
    StoreError,
)
from bloodcells.imaging import Preprocess, Tone
from jobs.prepare import PrepareConfig, prepare
from jobs.train import TrainConfig, train
from tests.manifests import jpeg, write_cells
from tests.s3 import S3Server

PER_CLASS = 14
RECIPE = {
    "batch_size": 32,
    "stages": [
        {"name": "head", "unfreeze": "head", "epochs": 1, "train_batch_norm": False},
        {"name": "all", "epochs": 2, "averaging": 0.9, "coarse": 0.5},
    ],
}


LEFT = {
    *("bundle.json", "weights.safetensors", "MODEL_CARD.md", "report.html"),
    *("training/training.json", "training/tensorboard/events.out.tfevents.bloodcells"),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    store = write_cells(folder / "cells", PER_CLASS)
    (store / "loose.jpg").write_bytes(jpeg("basophil", 99))
    (store / "basophil" / "torn.jpg").write_bytes(jpeg("basophil", 98)[:500])
    prepare(PrepareConfig(store=(str(store),), out=str(folder / "dataset"), keep=("alien",)))
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    return folder / "dataset"


def config(place: Path, out: Path | str, **more: object) -> TrainConfig:
    settings = {
        "dataset": str(place),
        "recipe": str(place.parent / "recipe.json"),
        "model": "custom_cnn",
        "from_scratch": True,
        "size": 32,
        "num_workers": "2",
    }
    return TrainConfig(out=str(out), **(settings | more))


@pytest.fixture(scope="module")
def trained(dataset: Path) -> tuple[Path, ModelBundle]:
    out = dataset.parent / "bundle"
    return out, train(config(dataset, out, about_data="drawn cells"))


def test_a_bundle_says_where_it_comes_from(trained: tuple[Path, ModelBundle]) -> None:
    out, bundle = trained
    loaded = ModelBundle.load(str(out))
    assert loaded.digest == bundle.digest
    assert loaded.preprocess == Preprocess(size=32, crop=0.65, tone=Tone())
    data = loaded.facts["data"]
    assert loaded.calibration.confusion.sum() == data["num_validation"]
    assert loaded.calibration.train_counts.sum() == data["num_train"]
    left_out = data["left_out"]
    assert left_out["undecodable"] == left_out["unlabelled"] == 1
    total = data["num_train"] + data["num_validation"] + sum(left_out.values())
    assert total == len(CLASSES) * PER_CLASS + 2
    assert loaded.facts["recipe"]["num_workers"] == 2
    assert "random" in loaded.facts["pretraining"]
    assert "drawn cells" in (out / "MODEL_CARD.md").read_text()


def test_what_is_left_beside_the_bundle(trained: tuple[Path, ModelBundle]) -> None:
    out, _ = trained
    left = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert left == LEFT
    record = json.loads((out / "training" / "training.json").read_text())
    assert record["status"] == "complete"
    events = EventAccumulator(str(out / "training" / "tensorboard"))
    events.Reload()
    assert [e.value for e in events.Scalars("loss/validation")] == pytest.approx(
        [epoch["val_loss"] for epoch in record["history"]]
    )
    losses = [loss for epoch in record["history"] for loss in epoch["step_losses"]]
    assert [e.value for e in events.Scalars("loss/step")] == pytest.approx(losses)
    assert [e.step for e in events.Scalars("loss/step")] == list(range(1, len(losses) + 1))
    page = (out / "report.html").read_text()
    assert "custom_cnn" in page
    assert "<script" not in page


def test_run_again_nothing_changes_and_other_settings_are_refused(
    dataset: Path, trained: tuple[Path, ModelBundle]
) -> None:
    out, bundle = trained
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert train(config(dataset, out, about_data="drawn cells")).digest == bundle.digest
    now = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "training"}
    assert now.items() <= before.items()
    with pytest.raises(RunMismatchError, match=r"recipe\.seed: 0 there, 5 asked for.*--restart"):
        train(config(dataset, out, seed=5))


def test_the_same_seed_makes_the_same_bundle_on_s3_too(
    dataset: Path, trained: tuple[Path, ModelBundle], s3: S3Server
) -> None:
    out = f"{s3.uri}/bundles/again"
    train(config(dataset, out, about_data="drawn cells"))
    assert ModelBundle.load(out).digest == trained[1].digest
    left = {entry.uri.removeprefix(f"{out}/") for entry in storage.walk(out)}
    assert left == LEFT


def test_a_bundle_for_other_labs_is_taken_along(
    dataset: Path, trained: tuple[Path, ModelBundle], tmp_path: Path
) -> None:
    out, first = trained
    with pytest.raises(
        ConfigurationError, match=f"--elsewhere-bundle: the bundle {first.digest} sees"
    ):
        train(config(dataset, tmp_path / "wide", size=48, elsewhere_bundle=str(out)))
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"batch_size": 32, "stages": [{"name": "all", "epochs": 1}]}))
    asked = {"recipe": str(recipe), "elsewhere_bundle": str(out)}
    both = train(config(dataset, tmp_path / "both", **asked))
    loaded = ModelBundle.load(str(tmp_path / "both"))
    assert loaded.digest == both.digest
    assert loaded.elsewhere and loaded.elsewhere.digest == first.digest
    assert replace(both, elsewhere=None).digest != first.digest
    with pytest.raises(RunMismatchError, match="elsewhere"):
        train(config(dataset, tmp_path / "both", recipe=str(recipe)))


def test_a_bundle_is_taught_by_another(
    dataset: Path, trained: tuple[Path, ModelBundle], tmp_path: Path
) -> None:
    out, first = trained
    recipe = tmp_path / "recipe.json"
    stage = {"name": "taught", "epochs": 1, "keep_last": True}
    recipe.write_text(json.dumps({"batch_size": 32, "teaching": 0.8, "stages": [stage]}))
    asked = config(dataset, tmp_path / "taught", recipe=str(recipe), teacher=(str(out),))
    taught = train(asked)
    assert taught.facts["recipe"]["teachers"] == [first.digest]
    card = (tmp_path / "taught" / "MODEL_CARD.md").read_text()
    assert f"| teachers | {first.digest} |" in card
    assert f"<dd>{first.digest}</dd>" in (tmp_path / "taught" / "report.html").read_text()
    with pytest.raises(RunMismatchError, match="teachers"):
        train(replace(asked, teacher=(str(out), str(out))))
    with pytest.raises(ConfigurationError, match="--folds: the teachers have learned from every"):
        train(replace(asked, folds=2, restart=True))
    with pytest.raises(ConfigurationError, match="learns from teachers"):
        train(replace(asked, teacher=()))


def test_folds_decide_what_goes_to_review(dataset: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"batch_size": 32, "stages": [{"name": "all", "epochs": 1}]}))
    asked = config(dataset, tmp_path / "bundle", folds=2, recipe=str(recipe))
    bundle = train(asked)
    data, review = bundle.facts["data"], bundle.facts["review"]
    assert review["folds"] == 2
    assert review["num_images"] == data["num_train"] + data["num_validation"]
    halves = [
        ModelBundle.load(str(tmp_path / "bundle" / "training" / f"fold-{number}"))
        for number in (1, 2)
    ]
    sizes = [half.facts["data"]["num_validation"] for half in halves]
    assert sum(sizes) == review["num_images"]
    assert bundle.calibration.review_below == 1, "too few images to show anything"
    card = (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    assert f"there were {review['num_images']:,} images, each judged by one of 2 models" in card
    assert train(asked).digest == bundle.digest
    with pytest.raises(RunMismatchError, match="folds: 2 there, None asked for"):
        train(replace(asked, folds=0))


def test_a_bundle_from_elsewhere_is_not_overwritten(
    dataset: Path, trained: tuple[Path, ModelBundle], tmp_path: Path
) -> None:
    shutil.copytree(trained[0], tmp_path / "bundle")
    shutil.rmtree(tmp_path / "bundle" / "training")
    with pytest.raises(RunError, match="holds a bundle that was not trained there"):
        train(config(dataset, tmp_path / "bundle"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dataset": None}, "either --dataset.* or --store"),
        ({"store": ("x",)}, "either --dataset.* or --store"),
        ({"splits": "x.csv"}, "--splits goes with --store"),
        ({"weights": "x.pth"}, "--weights and --from-scratch"),
        ({"num_workers": "0"}, "--num-workers 0: give N or MIN:MAX"),
        ({"max_failures": -1}, "--max-failures -1"),
        ({"checkpoint_minutes": 0.0}, "--checkpoint-minutes 0.0"),
        ({"crop": 2.5}, "crop"),
    ],
    ids=str,
)
def test_settings_are_checked_before_anything_starts(
    wrong: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        config(tmp_path / "dataset", tmp_path / "out", **wrong)


def test_a_job_that_cannot_work(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigurationError, match="--model no_such_net"):
        train(config(dataset, out, model="no_such_net"))
    with pytest.raises(DatasetError, match=r"nowhere.*jobs\.prepare"):
        train(config(dataset, out, dataset=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigurationError, match="--num-workers 64"):
        train(config(dataset, out, num_workers="64"))
    with pytest.raises(ConfigurationError, match="--optimizer sgd"):
        train(config(dataset, out, optimizer="sgd"))
    with pytest.raises(NotFoundError, match=r"nowhere\.csv"):
        train(
            config(dataset, out, dataset=None, store=("x",), splits=str(tmp_path / "nowhere.csv"))
        )
    assert not out.exists()


def test_stores_that_cannot_be_trained_on(tmp_path: Path, ray_cluster: None) -> None:
    store = write_cells(tmp_path / "cells", 3)
    shutil.rmtree(store / "platelet")

    def refused(message: str) -> None:
        with pytest.raises(StoreError, match=message):
            train(
                TrainConfig(
                    store=(str(store),),
                    out=str(tmp_path / "out"),
                    model="custom_cnn",
                    from_scratch=True,
                )
            )

    refused("no usable image of platelet")
    (store / "platelet").mkdir()
    (store / "platelet" / "only.jpg").write_bytes(jpeg("platelet", 1))
    refused("only one usable image of platelet")
    assert not (tmp_path / "out" / "bundle.json").exists()
