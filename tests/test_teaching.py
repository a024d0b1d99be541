"""A network that learns what others say: of the same view, and not of what is no cell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from bloodcells.augment import Augmentation
from bloodcells.bundle import ModelBundle
from bloodcells.errors import ConfigurationError
from bloodcells.imaging import Preprocess, Tone
from bloodcells.models import create_model
from bloodcells.training.adapting_fit import only_dense_layer
from bloodcells.training.ingest import TrainingData, load_training_data
from bloodcells.training.loop import StagedTraining, TrainedModel, TrainingTask
from bloodcells.training.presets import preset
from bloodcells.training.recipe import Recipe, Stage
from bloodcells.training.teaching import Teachers, require_teachers
from tests.manifests import manifest_of, write_cells
from tests.tiny_bundle import untrained

CPU = torch.device("cpu")
SEEN = Preprocess(size=32, crop=0.65)
RECIPE = Recipe(
    model="custom_cnn",
    stages=(
        Stage(
            name="taught",
            epochs=4,
            optimizer="adam",
            learning_rate=1e-3,
            schedule="constant",
            keep_last=True,
        ),
    ),
    batch_size=16,
    balance=0.0,
    dropout=0.0,
    label_smoothing=0.0,
    augmentation=Augmentation.parse("flips"),
    teaching=1.0,
)


def teacher(seed: int) -> ModelBundle:
    """A network of random weights whose answers vary with what it sees, and lean to one class."""
    torch.manual_seed(seed)
    model = create_model("custom_cnn")
    with torch.no_grad():
        dense = only_dense_layer(model)
        dense.weight.mul_(30)
        dense.bias[seed] += 2
    return replace(
        untrained(), model_name="custom_cnn", preprocess=SEEN, state_dict=model.state_dict()
    )


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    return manifest_of(write_cells(tmp_path_factory.mktemp("cells") / "cells", 8))


@pytest.fixture(scope="module")
def data(manifest: pa.Table, ray_cluster: None) -> TrainingData:
    return load_training_data(manifest, SEEN, "cells")


def views(num: int) -> torch.Tensor:
    """Noise, the later the brighter."""
    rng = np.random.default_rng(0)
    brightest = np.linspace(60, 255, num).astype(int)
    return torch.stack(
        [torch.from_numpy(rng.integers(0, most, (32, 32, 3), np.uint8)) for most in brightest]
    )


def test_a_target_is_the_mean_of_what_teachers_say_and_the_label() -> None:
    bundles = [teacher(1), teacher(2)]
    labels = torch.eye(8)[torch.tensor([3, 5, 0])]
    labels[2] = 1 / 8  # of no cell type
    found = Teachers(bundles, 0.75, CPU).targets(views(3), labels)
    with torch.inference_mode():
        said = sum(bundle.build().eval()(views(3)).softmax(1) for bundle in bundles) / 2
    assert torch.allclose(found[:2], 0.75 * said[:2] + 0.25 * labels[:2], atol=1e-4)
    assert torch.equal(found[2], labels[2])
    assert torch.allclose(found.sum(1), torch.ones(3))
    assert not torch.allclose(said[0], said[1], atol=0.005), "the teachers look at the picture"


def test_a_network_comes_to_say_what_its_teacher_says(data: TrainingData) -> None:
    taught_by = teacher(1)
    torch.manual_seed(0)
    start = create_model("custom_cnn").state_dict()

    def distance(weights: dict[str, torch.Tensor]) -> float:
        model = create_model("custom_cnn").eval()
        model.load_state_dict(weights)
        pixels = torch.from_numpy(data.validation.pixels.take(np.arange(8)))
        with torch.inference_mode():
            said = taught_by.build().eval()(pixels).softmax(1)
            return float((model(pixels).softmax(1) - said).abs().sum(1).mean())

    def trained(recipe: Recipe, *teachers: ModelBundle) -> TrainedModel:
        task = TrainingTask(recipe=recipe, data=data, weights=dict(start), teachers=teachers)
        return StagedTraining(task).run()

    by_labels = trained(replace(RECIPE, teaching=0.0))
    taught = trained(RECIPE, taught_by)
    assert distance(taught.weights) < 0.6 * distance(start)
    assert distance(taught.weights) < 0.6 * distance(by_labels.weights)
    assert [epoch["is_best"] for epoch in taught.history] == [True] * 4, "the last is kept"


def test_teachers_and_a_recipe_that_learns_from_them_go_together() -> None:
    given = teacher(1)
    require_teachers(RECIPE, [given], SEEN)
    require_teachers(Recipe(), [], SEEN)
    for recipe, teachers in ((RECIPE, []), (Recipe(), [given])):
        with pytest.raises(ConfigurationError, match="--teacher BUNDLE, for each"):
            require_teachers(recipe, teachers, SEEN)
    toned = replace(SEEN, tone=Tone())
    with pytest.raises(ConfigurationError, match=f"--teacher: the bundle {given.digest} sees"):
        require_teachers(RECIPE, [given], toned)


def test_the_preset_is_how_the_network_for_other_labs_was_taught() -> None:
    taught = preset("taught")
    assert taught.teaching == 0.8
    assert taught.augmentation == replace(Augmentation.parse("veiled"), strangers=0.2)
    assert [stage.keep_last for stage in taught.stages] == [True]
    with pytest.raises(ConfigurationError, match="patience or keep_last"):
        Stage(name="both", patience=3, keep_last=True)
