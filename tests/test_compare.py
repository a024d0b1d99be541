"""jobs.compare: one recipe, several models, tested at home and elsewhere; folds keep groups."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bloodcells.errors import ConfigurationError
from bloodcells.evaluation import Tally
from bloodcells.training.comparison import PUBLISHED, Row, markdown, tables_of
from jobs.compare import CompareConfig, compare
from jobs.prepare import PrepareConfig, prepare
from tests.manifests import write_cells


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A model with pretrained weights and one without, trained for an epoch and compared."""
    folder = tmp_path_factory.mktemp("compared")
    store = write_cells(folder / "cells", 24)
    write_cells(folder / "afar", 2)
    prepare(PrepareConfig(store=(str(store),), out=str(folder / "dataset"), keep=("alien",)))
    compare(config(folder))
    return folder


def config(folder: Path) -> CompareConfig:
    return CompareConfig(
        dataset=str(folder / "dataset"),
        out=str(folder / "table"),
        models="custom_cnn,tf_efficientnet_lite0",
        elsewhere=(str(folder / "afar"),),
        epochs=1,
        size=32,
    )


def test_a_comparison_says_what_it_compared(compared: Path) -> None:
    table = compared / "table"
    document = json.loads((table / "compare.json").read_text())
    assert document["is_complete"]
    assert [(row["model"], row["from_scratch"]) for row in document["rows"]] == [
        ("custom_cnn", True),
        ("tf_efficientnet_lite0", False),
    ]
    for row in document["rows"]:
        assert set(row["sets"]) == {"test", "afar"}
        assert row["sets"]["afar"]["num_images"] == 16
        assert 0 <= row["sets"]["test"]["accuracy"][0][0] <= 1
        assert (table / "models" / row["model"] / "bundle.json").exists()
    text = (table / "compare.md").read_text()
    for heading in ("## From pretrained weights", "## From random weights", "## Published"):
        assert heading in text
    assert "| `efficientnetv2_m` | lion | 96.49 | 85 | – |" in text
    page = (table / "report.html").read_text()
    assert "96.49" in page
    assert "<script" not in page


def test_run_again_nothing_is_trained(compared: Path) -> None:
    weights = {path: path.stat().st_mtime_ns for path in compared.rglob("weights.safetensors")}
    before = (compared / "table" / "compare.json").read_bytes()
    compare(config(compared))
    assert (compared / "table" / "compare.json").read_bytes() == before
    assert {p: p.stat().st_mtime_ns for p in compared.rglob("weights.safetensors")} == weights


def row(accuracies: list[float]) -> Row:
    evaluations = []
    for accuracy in accuracies:
        tally = Tally()
        right = round(accuracy * 100)
        predicted = np.array([0] * right + [1] * (100 - right))
        tally.add(np.zeros(100, int), predicted, np.ones(100))
        evaluations.append(tally.evaluation())
    return Row(
        model="efficientnetv2_m",
        optimizer="lion",
        pretraining="",
        from_scratch=False,
        num_parameters=52_868_588,
        epochs=3,
        seconds=1.0,
        digest="",
        sets={"test": evaluations},
    )


def test_folds_have_a_deviation_and_single_runs_an_interval() -> None:
    single = markdown(tables_of([row([0.9])], ["test"]), {})
    assert "| `efficientnetv2_m` | lion | 52.9 M | 3 | 90.0 (82.6–94.5) |" in single
    several = markdown(tables_of([row([0.9, 0.8])], ["test"]), {})
    assert "| 85.0 ± 7.1 |" in several


def test_the_published_table() -> None:
    assert [(each.local, each.elsewhere) for each in PUBLISHED] == [
        *((88.8, 38), (94.73, 66), (96.24, 75), (96.74, 78), (95.15, 74), (96.49, 85))
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"models": ""}, "--models is empty"),
        ({"folds": 1}, "--folds 1: give 2 or more"),
        ({"weights": ("vgg16",)}, "--weights vgg16: give NAME=URI"),
        ({"weights": ("nobody=x.pth",)}, "NAME one of --models"),
    ],
    ids=str,
)
def test_settings_are_checked(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CompareConfig(dataset="d", out="o", **wrong)
