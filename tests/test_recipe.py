"""Recipes are data: presets, files, what the command line changes, rates of a schedule."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bloodcells.errors import ConfigurationError
from bloodcells.training.presets import PRESETS, preset, read_recipe
from bloodcells.training.recipe import Recipe, Stage, recipe_from
from bloodcells.training.schedule import learning_rate
from bloodcells.training.stopping import EarlyStopping


def test_the_report_preset_is_the_published_method() -> None:
    report = preset("report")
    assert report.model == "efficientnetv2_m"
    assert report.batch_size == 64
    assert report.metric == "val_accuracy"
    assert report.balance == 1
    assert report.class_weights
    assert report.has_idle_weights
    assert [stage.unfreeze for stage in report.stages] == ["head", "keras:150", "keras:400"]
    assert [stage.decay for stage in report.stages] == [0.015, 0.005, 2e-4]
    assert [stage.peak_rate for stage in report.stages][1:] == [1e-4, 3e-6]
    assert {stage.optimizer for stage in report.stages} == {"lion"}
    assert {stage.patience for stage in report.stages} == {40}
    assert not any(stage.train_batch_norm for stage in report.stages)


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_survives_json(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(preset(name).to_dict()))
    assert read_recipe(str(path)).to_dict() == preset(name).to_dict()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 1}, "a recipe has no rate"),
        ({"stages": []}, "at least one stage"),
        ({"stages": [{"name": "a", "optimizer": "sgd"}]}, "--optimizer sgd: choose one of lion"),
        ({"stages": [{"name": "a", "schedule": "steps"}]}, "--schedule steps"),
        ({"stages": [{"name": "a", "epochs": 0}]}, "epochs must be 1 or more"),
        ({"stages": [{"name": "a", "patience": 0}]}, "patience must be 1 or more"),
        ({"stages": [{"name": "a", "learning_rate": -1}]}, "learning_rate -1 cannot be meant"),
        ({"balance": 2}, "balance 2: give 0 to 1"),
        ({"metric": "luck"}, "--metric luck"),
        ({"augmentation": "sparkle=3"}, "sparkle"),
    ],
    ids=str,
)
def test_what_is_no_recipe(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        recipe_from(values)


def test_a_file_that_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text("{")
    with pytest.raises(ConfigurationError, match=r"--recipe .*recipe\.json is not a recipe"):
        read_recipe(str(path))
    with pytest.raises(
        ConfigurationError, match="--recipe fast: choose one of default, veiled, taught, report"
    ):
        read_recipe("fast")


def test_the_command_line_changes_a_recipe() -> None:
    report = preset("report").changed(optimizer="adam", epochs=10, seed=7, model="custom_cnn")
    assert report.model == "custom_cnn"
    assert report.seed == 7
    assert {(stage.optimizer, stage.peak_rate, stage.decay) for stage in report.stages} == {
        ("adam", 1e-3, 0.0)
    }
    assert [stage.epochs for stage in report.stages] == [10, 10, 10]
    kept = preset("report").changed(optimizer="lion")
    assert [stage.decay for stage in kept.stages] == [0.015, 0.005, 2e-4]
    uneven = Recipe(stages=(Stage(name="a", epochs=2), Stage(name="b", epochs=20)))
    assert [stage.epochs for stage in uneven.changed(epochs=10).stages] == [1, 10]
    with pytest.raises(ConfigurationError, match="--epochs 0"):
        uneven.changed(epochs=0)


def test_schedules() -> None:
    def rates(schedule: str) -> list[float]:
        stage = Stage(name="a", learning_rate=1.0, schedule=schedule, warm_up=0.2)
        return [learning_rate(stage, step, 100) for step in range(100)]

    assert set(rates("constant")) == {1.0}
    cosine = rates("cosine")
    assert cosine[0] == 1
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[-1] < 0.001
    cycle = rates("one_cycle")
    assert cycle[0] == pytest.approx(0.04)
    assert max(cycle) == cycle[20] == 1
    assert cycle[:21] == sorted(cycle[:21])
    assert cycle[20:] == sorted(cycle[20:], reverse=True)


def figures(accuracy: float, loss: float) -> dict[str, float]:
    return {"val_accuracy": accuracy, "val_loss": loss, "val_macro_f1": accuracy}


def test_early_stopping_keeps_the_best_and_waits() -> None:
    stopping = EarlyStopping(metric="val_accuracy", patience=2)
    assert stopping.see(0, figures(0.5, 1.0))
    assert stopping.see(1, figures(0.5, 0.9)), "of equal ones the lower loss wins"
    assert not stopping.see(2, figures(0.5, 0.95))
    assert not stopping.is_over
    again = EarlyStopping(**stopping.to_dict())
    for each in (stopping, again):
        assert not each.see(3, figures(float("nan"), float("nan")))
        assert each.is_over
        assert each.best_epoch == 1


def test_by_loss_the_lowest_is_best() -> None:
    stopping = EarlyStopping(metric="val_loss", patience=None)
    assert stopping.see(1, figures(0.9, 1.0))
    assert stopping.see(2, figures(0.1, 0.5))
    assert not stopping.see(3, figures(0.9, 0.6))
    assert not stopping.is_over


def test_the_recipe_of_the_documents_is_one() -> None:
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    (example,) = re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    recipe = recipe_from(json.loads(example))
    assert [stage.unfreeze for stage in recipe.stages] == ["head", "all"]
    assert recipe.augmentation.cutmix == 0.2
