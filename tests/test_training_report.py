"""The report of a training shows every stage and epoch, and lives with what is missing or odd."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloodcells.cells import CLASSES
from bloodcells.evaluation import Evaluation, Tally
from bloodcells.report.curves import Series, StageSpan, epoch_curves
from bloodcells.report.training import Mistake, TrainingFacts, write_training_report
from bloodcells.synthetic import draw_cell
from tests.test_report import HOSTILE, Page


def evaluated(temperature: float, num: int = 400) -> Evaluation:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 8, num)
    logits = rng.normal(0, 1.2, (num, 8))
    logits[np.arange(num), labels] += 4.0
    probabilities = np.exp(logits / temperature)
    probabilities /= probabilities.sum(1, keepdims=True)
    tally = Tally()
    tally.add(labels, probabilities.argmax(1), probabilities.max(1), probabilities)
    found = tally.evaluation()
    assert found is not None
    return found


def history(epochs: tuple[int, ...] = (4, 9, 6)) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for stage, num in enumerate(epochs):
        for epoch in range(1, num + 1):
            done = len(rows) + 1
            rows.append(
                {
                    "stage": stage,
                    "stage_name": f"stage {stage}",
                    "epoch": epoch,
                    "step": 118 * done,
                    "learning_rate": 10.0 ** -(stage + 3) * (1 - epoch / (num + 1)),
                    "loss": 1.9 / done**0.5 + 0.4,
                    "accuracy": None if stage == 0 else 1 - 0.5 / done**0.5,
                    "val_loss": 1.6 / done**0.6 + 0.1 + 0.03 * (done % 3),
                    "val_accuracy": 1 - 0.4 / done**0.8 - 0.004 * (done % 3),
                    "val_macro_f1": 1 - 0.45 / done**0.8 - 0.004 * (done % 3),
                    "images_per_s": 180.0 + 7 * (done % 4) - 30 * stage,
                    "seconds": 41.5,
                    "is_best": epoch == num - 1,
                }
            )
    return rows


def facts(num_mistakes: int = 6, **changes: Any) -> TrainingFacts:
    cells = [draw_cell(name, seed, size_px=96) for seed, name in enumerate(CLASSES[:num_mistakes])]
    return TrainingFacts(
        bundle_uri="s3://bucket/bundle",
        model_name="tf_efficientnet_lite0",
        digest="sha256:abc",
        stages=[
            {"name": name, "unfreeze": unfreeze, "optimizer": "lion", "learning_rate": rate}
            for name, unfreeze, rate in (
                ("head", "head", 1e-3),
                ("last blocks", "last 2 blocks", 1e-4),
                ("all", "all", 3e-6),
            )
        ],
        history=history(),
        settings={"seed": 42, "augment": {"flip": True, "rotation": 180}, "ema": None},
        data={"dataset": "pbc", "num_train": 5759, "images": {"train": 5759, "val": 720}},
        before=evaluated(0.25),
        after=evaluated(0.42),
        temperature=1.667,
        mistakes=[
            Mistake(
                image_uri=f"store/{HOSTILE}{i}.jpg",
                label=CLASSES[i],
                predicted_class=CLASSES[(i + 1) % 8],
                confidence=0.99 - i / 50,
                pixels=cell,
                overlay=255 - cell,
            )
            for i, cell in enumerate(cells)
        ],
        **changes,
    )


def page(tmp_path: Path, shown: TrainingFacts) -> Page:
    return Page(write_training_report(str(tmp_path), shown))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page(tmp_path_factory.mktemp("bundle"), facts())


def test_everything_is_shown(full: Page) -> None:
    shown = facts()
    for sentence in (
        "Trained for 19 epochs in 3 stages. Of 400 validation images",
        "Validation, not test.",
        "a temperature of 1.667",
        "last 2 blocks",
        "augment.rotation",
        "images.val",
        "sha256:abc",
        f"{shown.before.log_loss:.4f} {shown.after.log_loss:.4f}",
        f"{shown.before.brier:.4f} {shown.after.brier:.4f}",
        "Most often confused",
        "given eosinophil, 99.0 %",
        "label basophil",
    ):
        assert sentence in full.text, sentence
    assert len(full.all("img")) == 12
    kept = [row for row in shown.history if row["is_best"]]
    for row in kept:
        assert f"{100 * row['val_accuracy']:.2f}" in full.text
    # Three rings in each of the four charts.
    assert full.source.count('class="kept"') == 12


def test_page_is_safe_and_accessible(full: Page) -> None:
    assert not {tag for tag, _ in full.tags} & {"script", "link", "iframe", "object", "a", "form"}
    assert not [c for c in full.source if not (c.isprintable() or c == "\n")]
    assert "<script>alert" not in full.source
    for tag in ("svg", "img"):
        for attributes in full.all(tag):
            assert (
                attributes.get("aria-label") or attributes.get("aria-hidden") or attributes["alt"]
            )
            assert "style" not in attributes
    assert len(full.all("caption")) == len(full.all("table"))
    ids = [attributes["id"] for _, attributes in full.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in full.tags:
        assert attributes.get("aria-labelledby", ids[0]) in ids


def test_the_same_facts_give_the_same_report(tmp_path: Path, full: Page) -> None:
    assert page(tmp_path, facts()).source == full.source


def test_no_mistake_no_heat_map_no_epoch(tmp_path: Path) -> None:
    assert "No validation image is wrong" in page(tmp_path, facts(0)).text
    shown = facts(2)
    bare = replace(shown, mistakes=[replace(m, overlay=None) for m in shown.mistakes])
    without = page(tmp_path, bare)
    assert len(without.all("img")) == 2
    assert "Grad-CAM" not in without.text
    assert "Epoch by epoch" not in page(tmp_path, replace(shown, history=[])).text


def test_a_loss_that_is_no_number_is_said_and_leaves_a_gap(tmp_path: Path) -> None:
    rows = history()
    for row in rows[5:8]:
        row["loss"] = row["val_loss"] = math.nan
    shown = page(tmp_path, replace(facts(0), history=rows))
    assert "It was not finite in 3 epochs, first in epoch 2 of stage 2" in shown.text
    assert ">nan" not in shown.source
    assert '"nan' not in shown.source


def test_a_class_without_validation_images_is_said(tmp_path: Path) -> None:
    tally = Tally()
    tally.add(np.array([0, 1]), np.array([0, 1]), np.array([0.9, 0.9]))
    few = tally.evaluation()
    assert few is not None
    text = page(tmp_path, replace(facts(0), before=few, after=few)).text
    assert "no validation image is of class eosinophil" not in text
    assert "no validation image is of class erythroblast, immature granulocyte" in text


@pytest.mark.parametrize("scale", ["linear", "log", "percent"])
@pytest.mark.parametrize(
    "values", [[], [0.5], [0.5, 0.5], [None, 0.2], [0.0, 1.0], [1e-7, 3e-3, 0.9], [0.9991, 0.9992]]
)
def test_curves_of_any_values_stay_inside_the_picture(scale: Any, values: list[Any]) -> None:
    stage = StageSpan(
        name="all", begin=0, end=len(values), best=len(values) - 1 if values else None
    )
    drawn = str(epoch_curves([Series(name="x", kind="s-val", values=values)], [stage], "t", scale))
    points = [p for part in drawn.split('points="')[1:] for p in part.split('"')[0].split()]
    ends = [tuple(map(float, p.split(","))) for p in points]
    assert len(points) in (0, len([v for v in values if v is not None]), len(values) - 1)
    for x, y in ends:
        assert 48 <= x <= 350
        assert 21.9 <= y <= 210.1
    assert drawn.count('class="end"') >= 2, "an axis has at least two ticks"
