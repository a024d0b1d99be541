"""The report of a study: its trials best first, what each setting did, how the best ones learnt.

Knows what a study hands it, in plain values, and nothing of how trials ran.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bloodcells import storage
from bloodcells.evaluation import wilson
from bloodcells.report import curves
from bloodcells.report.curves import Series, StageSpan
from bloodcells.report.page import render_page
from bloodcells.report.scatter import Point, scatter

METRIC_NAMES: Final[Mapping[str, str]] = {
    "val_accuracy": "validation accuracy",
    "val_macro_f1": "validation macro-F1",
    "val_loss": "validation loss",
}
_KINDS: Final = {"complete": "", "stopped early": "s-train"}
_CURVES: Final = ("s-val", "s-train", "s-third")


@dataclass(frozen=True, kw_only=True)
class StudyFacts:
    """All that the report shows.

    Attributes:
        study_uri: where the study is.
        source: the dataset.
        model_name: the architecture.
        metric: ``val_accuracy``, ``val_macro_f1`` or ``val_loss``.
        num_validation: images that the trials were compared by.
        num_trials: how many trials there are to be.
        space: the ranges, by name.
        trials: those that are over, best first: ``number``, ``configuration``
            (``learning_rate``, ``weight_decay``, ``strength``, ``staging``), ``outcome``
            (``complete``, ``stopped early``, ``failed``), ``best`` (figures of the best epoch, or
            ``None``), ``failure``, ``epochs``, ``seconds``, ``history`` (one dict an epoch).
        stages: of the best trial: ``name`` and ``epochs`` of each.
        size, crop: how the model saw images.
        settings: what all trials share; nested values are shown with dotted names.
    """

    study_uri: str
    source: str
    model_name: str
    metric: str
    num_validation: int
    num_trials: int
    space: Mapping[str, Any]
    trials: Sequence[Mapping[str, Any]]
    stages: Sequence[Mapping[str, Any]]
    size: int
    crop: float
    settings: Mapping[str, Any]


def write_study_report(folder_uri: str, facts: StudyFacts) -> str:
    """Write ``report.html`` into a folder, atomically, and return its URI.

    Raises:
        StorageError: it cannot be written there.
    """
    uri = storage.join(storage.normalise(folder_uri), "report.html")
    storage.put(uri, render(facts).encode())
    return uri


def render(facts: StudyFacts) -> str:
    """Return the report as HTML; the same facts give the same report."""
    best = facts.trials[0]
    complete = [trial for trial in facts.trials if trial["outcome"] == "complete"]
    return render_page(
        "study.html",
        facts=facts,
        best=best,
        own=next((trial for trial in facts.trials if trial["number"] == 1), None),
        outcomes={
            name: sum(trial["outcome"] == name for trial in facts.trials)
            for name in ("complete", "stopped early", "failed")
        },
        metric_name=METRIC_NAMES[facts.metric],
        is_loss=facts.metric == "val_loss",
        interval=_interval(best, facts.num_validation),
        num_alike=_num_alike(facts, complete),
        seconds=sum(trial["seconds"] for trial in facts.trials),
        scatters=_scatters(facts),
        curves=_curves(facts),
        command=_command(facts),
    )


def _interval(trial: Mapping[str, Any], total: int) -> Any:
    """Return the accuracy of a trial with its 95 % interval (Wilson)."""
    return wilson(round(trial["best"]["val_accuracy"] * total), total)


def _num_alike(facts: StudyFacts, complete: Sequence[Mapping[str, Any]]) -> int:
    """Return how many complete trials lie within the interval of the best one's accuracy."""
    low = _interval(facts.trials[0], facts.num_validation).low
    return sum(trial["best"]["val_accuracy"] >= low for trial in complete)


def _scatters(facts: StudyFacts) -> list[dict[str, Any]]:
    """Draw the metric against each setting."""
    shown = [
        trial for trial in facts.trials if trial["outcome"] in _KINDS and trial["best"] is not None
    ]
    drawn = []
    for name, heading, is_log in (
        ("learning_rate", "Learning rate", True),
        ("weight_decay", "Weight decay", True),
        ("strength", "Augmentation strength", False),
        ("staging", "Stages", False),
    ):
        points = [
            Point(
                x=trial["configuration"][name],
                y=trial["best"][facts.metric],
                kind=_KINDS[trial["outcome"]],
                title=f"trial {trial['number']}, {trial['outcome']}",
                is_marked=trial is facts.trials[0],
            )
            for trial in shown
            if not is_log or trial["configuration"][name] > 0
        ]
        if points:
            chart = scatter(
                points,
                heading.lower(),
                f"{METRIC_NAMES[facts.metric]} by {heading.lower()}",
                is_log=is_log,
                unit="number" if facts.metric == "val_loss" else "percent",
            )
            drawn.append({"heading": heading, "chart": chart})
    return drawn


def _curves(facts: StudyFacts) -> list[dict[str, Any]]:
    """Draw how the best trials learnt, on the stages of the best one."""
    best = facts.trials[0]["history"]
    spans = []
    begin = 0
    for number, stage in enumerate(facts.stages):
        own = [i for i, figures in enumerate(best) if figures["stage"] == number]
        kept = [i for i in own if best[i]["is_best"]]
        spans.append(
            StageSpan(
                name=str(stage["name"]),
                begin=begin,
                end=begin + stage["epochs"],
                best=kept[-1] if kept and kept[-1] < begin + stage["epochs"] else None,
            )
        )
        begin += stage["epochs"]
    chosen = [trial for trial in facts.trials if trial["outcome"] != "failed"][: len(_CURVES)]
    figures_drawn: list[tuple[str, str, curves.Scale]] = [
        ("Validation loss", "val_loss", "linear"),
        ("Validation accuracy", "val_accuracy", "percent"),
    ]
    drawn = []
    for heading, key, scale in figures_drawn:
        lines = [
            Series(
                name=f"trial {trial['number']}",
                kind=kind,
                values=[figures[key] for figures in trial["history"]],
            )
            for trial, kind in zip(chosen, _CURVES, strict=False)
        ]
        drawn.append(
            {
                "heading": heading,
                "chart": curves.epoch_curves(lines, spans, f"{heading} by epoch", scale),
                "legend": curves.line_legend(lines),
            }
        )
    return drawn


def _command(facts: StudyFacts) -> str:
    """Return the command that trains a bundle by the best recipe."""
    recipe = storage.join(facts.study_uri, "recipe.json")
    words = ["--dataset", facts.source, "--recipe", recipe, "--out", "BUNDLE"]
    words += ["--size", str(facts.size), "--crop", f"{facts.crop:g}"]
    command = f"python -m jobs.train {shlex.join(words)}"
    # Whole, or it would not run: the filter ``text`` would shorten it.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in command)
