"""The report of a study: what is best, what is as good, and what failed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bloodcells.report.scatter import Point, scatter
from bloodcells.report.study import StudyFacts, write_study_report
from bloodcells.training.recipe import Recipe
from bloodcells.training.search_space import SearchSpace
from bloodcells.training.study import TrialRecord, best_figures, ranked
from tests.test_report import HOSTILE, Page


def history(space: SearchSpace, number: int, epochs: int) -> list[dict[str, Any]]:
    """Made-up epochs: the further from the recipe's rate, the worse."""
    tried = space.configuration(number)
    off = abs(tried.learning_rate / 3e-4 - 1.3) + abs(tried.strength - 0.9) / 3
    stages = space.recipe_of(tried).stages
    rows: list[dict[str, Any]] = []
    for stage, each in enumerate(stages):
        for epoch in range(1, each.epochs + 1):
            done = len(rows) + 1
            rows.append(
                {
                    "stage": stage,
                    "stage_name": each.name,
                    "epoch": epoch,
                    "val_loss": 0.05 + 0.1 * off + 1.2 / done,
                    "val_accuracy": 0.985 - 0.012 * off - 0.3 / done**2,
                    "val_macro_f1": 0.98 - 0.012 * off - 0.3 / done**2,
                    "is_best": True,
                    "seconds": 70.0,
                }
            )
    return rows[:epochs]


def facts(num_trials: int = 20, metric: str = "val_accuracy") -> StudyFacts:
    space = SearchSpace(recipe=replace(Recipe(), model="custom_cnn", metric=metric))
    trials = []
    for number in range(1, num_trials + 1):
        outcome = "failed" if number == 7 else "stopped early" if number % 3 == 2 else "complete"
        rows = history(space, number, {"failed": 0, "stopped early": 3}.get(outcome, 12))
        trials.append(
            TrialRecord(
                number=number,
                configuration=space.configuration(number).to_dict(),
                outcome=outcome,  # type: ignore[arg-type]
                best=best_figures(rows, metric),
                failure=f"OutOfMemoryError: {HOSTILE}" if outcome == "failed" else None,
                history=rows,
            )
        )
    order = ranked(trials, metric)
    chosen = space.recipe_of(space.configuration(order[0].number))
    return StudyFacts(
        study_uri="s3://bucket/study",
        source=f"dataset {HOSTILE}",
        model_name="custom_cnn",
        metric=metric,
        num_validation=720,
        num_trials=num_trials,
        space=space.to_dict(),
        trials=[{**trial.summary(), "history": trial.history} for trial in order],
        stages=[stage.to_dict() for stage in chosen.stages],
        size=96,
        crop=0.65,
        settings={"recipe": space.recipe.to_dict(), "data": "sha256:abc"},
    )


def page(folder: Path, shown: StudyFacts) -> Page:
    return Page(write_study_report(str(folder), shown))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page(tmp_path_factory.mktemp("study"), facts())


def test_everything_is_shown(full: Page) -> None:
    shown = facts()
    best = shown.trials[0]
    for sentence in (
        f"Of 20 trials, number {best['number']} has the best validation accuracy: "
        f"{100 * best['best']['val_accuracy']:.2f} %.",
        "Only validation chose. No image of the split test was read.",
        "complete trials are alike",
        "Trial 7 failed: OutOfMemoryError: ",
        "1 (as given)",
        "--recipe s3://bucket/study/recipe.json --out BUNDLE --size 96 --crop 0.65",
        "head, then all",
        "recipe.augmentation.zoom",
    ):
        assert sentence in full.text, sentence
    dots = [a for a in full.all("circle") if str(a["class"]).startswith("dot") and a["r"] == "3.5"]
    assert len(dots) == 4 * 19 + 2, "all but the failed one, and the legend"


def test_page_is_safe_and_accessible(full: Page) -> None:
    assert not {tag for tag, _ in full.tags} & {"script", "link", "iframe", "object", "a", "form"}
    assert not [c for c in full.source if not (c.isprintable() or c == "\n")]
    assert "<script>alert" not in full.source
    for attributes in full.all("svg"):
        assert attributes.get("aria-label") or attributes.get("aria-hidden")
        assert "style" not in attributes
    assert len(full.all("caption")) == len(full.all("table"))
    ids = [attributes["id"] for _, attributes in full.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_command_is_whole_however_long(tmp_path: Path) -> None:
    uri = "s3://bucket/" + "long/" * 60 + "study"
    assert (
        f"--recipe {uri}/recipe.json --out" in page(tmp_path, replace(facts(), study_uri=uri)).text
    )


def test_few_trials_and_those_left_over(tmp_path: Path) -> None:
    one = facts(1, "val_loss")
    shown = page(tmp_path, replace(one, num_trials=4))
    assert "Of 1 trial, number 1 has the best validation loss: 0.1" in shown.text
    assert "It is the recipe as it was given; nothing that was tried is better." in shown.text
    assert "3 of 4 trials are left over" in shown.text
    assert not [word for word in shown.words if "nan" in word.split()]
    assert '"nan' not in shown.source


def test_points_lie_where_their_numbers_are(tmp_path: Path) -> None:
    points = [
        Point(x=x, y=y, kind="", title="") for x, y in ((1e-4, 0.1), (1e-3, 0.5), (1e-2, 0.9))
    ]
    (tmp_path / "chart").write_text(scatter(points, "rate", "t", is_log=True, unit="percent"))
    chart = Page(str(tmp_path / "chart"))
    found = [(float(a["cx"] or 0), float(a["cy"] or 0)) for a in chart.all("circle")]
    (x0, y0), (x1, y1), (x2, y2) = found
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert x0 < x1
    assert y0 > y1, "upwards is more"
    assert {"1e-3", "20 %", "80 %"} <= set(chart.words)
