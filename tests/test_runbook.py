"""The runbook of the published method, on CPUs: drawn cells, few epochs, weights from a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from bloodcells.bundle import ModelBundle
from bloodcells.cells import CLASSES
from bloodcells.imaging import Preprocess, decode
from bloodcells.models import create_model
from bloodcells.synthetic import draw_cell
from jobs.prepare import PrepareConfig, prepare
from jobs.train import TrainConfig, train

PER_CLASS = 4


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of the published layout, with its own splits."""
    path = tmp_path_factory.mktemp("published") / "cells.npz"
    labels = np.repeat(np.arange(len(CLASSES)), PER_CLASS)
    images = [
        decode(draw_cell(CLASSES[label], i), Preprocess(size=96)).pixels
        for i, label in enumerate(labels)
    ]
    splits = np.where(np.arange(len(labels)) % PER_CLASS == 0, "val", "train")
    np.savez(path, images=np.stack(images), labels=labels[:, None], split=splits)
    return path


@pytest.mark.timeout(600)  # 53 million parameters, moved about on whatever runs the tests
def test_the_flagship_goes_through_the_published_stages(
    cells: Path, tmp_path: Path, ray_cluster: None
) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "model.safetensors"
    state = create_model("efficientnetv2_m").backbone.state_dict()
    safetensors.torch.save_file(state, weights)
    del state
    dataset = tmp_path / "dataset"
    prepare(
        PrepareConfig(
            store=(str(cells),),
            out=str(dataset),
            keep=("near_duplicate", "blurred", "alien"),
        )
    )
    out = tmp_path / "bundle"
    train(
        TrainConfig(
            dataset=str(dataset),
            out=str(out),
            recipe="report",
            weights=str(weights),
            size=32,
            crop=1.0,
            epochs=1,
            num_workers="1",
        )
    )
    bundle = ModelBundle.load(str(out))
    assert bundle.model_name == "efficientnetv2_m"
    assert "model.safetensors" in bundle.facts["pretraining"]
    stages = bundle.facts["recipe"]["stages"]
    assert [stage["unfreeze"] for stage in stages] == ["head", "keras:150", "keras:400"]
    history = json.loads((out / "training" / "training.json").read_text())["history"]
    assert [epoch["stage"] for epoch in history] == [0, 1, 2]
    assert {epoch["images"] for epoch in history} == {(PER_CLASS - 1) * len(CLASSES)}
