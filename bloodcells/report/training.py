"""The report of a training: how each stage went, and what the model it ended with gets wrong.

Knows what a trainer hands it, in plain values and arrays, and nothing of how it trained.
"""

from __future__ import annotations

import base64
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from bloodcells import storage
from bloodcells.evaluation import Evaluation
from bloodcells.report import curves
from bloodcells.report.curves import Series, StageSpan
from bloodcells.report.page import render_page

THUMBNAIL_PX: Final = 112

_FIELDS_OF_A_STAGE: Final = ("name",)
"""What the table of stages shows in a column of its own kind, and not among the settings."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mistake:
    """A validation image that the model got wrong.

    Attributes:
        image_uri: the image.
        label: its class.
        predicted_class: the class it was given.
        confidence: calibrated, 0–1.
        pixels: as the model saw it, ``uint8 (S, S, 3)``, RGB.
        overlay: the same with the heat map of ``predicted_class`` (see ``bloodcells.explain``);
            ``None`` for a model without one.
    """

    image_uri: str
    label: str
    predicted_class: str
    confidence: float
    pixels: npt.NDArray[np.uint8]
    overlay: npt.NDArray[np.uint8] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingFacts:
    """All that the report shows.

    Attributes:
        bundle_uri: where the bundle was written.
        model_name: the architecture.
        digest: the bundle's.
        stages: one dict a stage of the recipe, in order: ``name`` and its settings.
        history: one dict an epoch, in order: ``stage`` (from 0), ``stage_name``, ``epoch`` (from 1,
            within the stage), ``step`` (optimizer steps so far), ``learning_rate``, ``loss``,
            ``accuracy`` (of training, on augmented views), ``val_loss``, ``val_accuracy``,
            ``val_macro_f1``, ``images_per_s``, ``seconds``, ``is_best``. A figure may be ``None``.
        settings: how it was trained; nested values are shown with dotted names.
        data: what it was trained on, likewise.
        before: the validation images at temperature 1, with log-loss and Brier score.
        after: the same images as calibrated.
        temperature: that logits are divided by.
        mistakes: the validation images that were wrong with most confidence, worst first.
    """

    bundle_uri: str
    model_name: str
    digest: str
    stages: Sequence[Mapping[str, Any]]
    history: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    before: Evaluation
    after: Evaluation
    temperature: float
    mistakes: Sequence[Mistake]


def write_training_report(folder_uri: str, facts: TrainingFacts) -> str:
    """Write ``report.html`` into a folder, atomically, and return its URI.

    Raises:
        StorageError: it cannot be written there.
    """
    uri = storage.join(storage.normalise(folder_uri), "report.html")
    storage.put(uri, render(facts).encode())
    return uri


def render(facts: TrainingFacts) -> str:
    """Return the report as HTML; the same facts give the same report."""
    spans = _spans(facts)
    return render_page(
        "training.html",
        facts=facts,
        stages=[_stage(facts, number, span) for number, span in enumerate(spans)],
        settings_of_stages=_settings_of_stages(facts),
        figures_drawn=_curves(facts, spans),
        unusable=[row for row in facts.history if not _is_finite(row.get("loss"))],
        seconds=sum(row.get("seconds") or 0.0 for row in facts.history),
        throughput=_middle([row.get("images_per_s") for row in facts.history]),
        mistakes=[
            (m, _data_uri(m.pixels), None if m.overlay is None else _data_uri(m.overlay))
            for m in facts.mistakes
        ],
        confusions=facts.after.most_confused(6),
    )


def _spans(facts: TrainingFacts) -> list[StageSpan]:
    """Return where each stage of the recipe lies among the epochs; a stage may have none."""
    spans: list[StageSpan] = []
    for number, stage in enumerate(facts.stages):
        own = [i for i, row in enumerate(facts.history) if row["stage"] == number]
        begin = own[0] if own else (spans[-1].end if spans else 0)
        best = [i for i in own if facts.history[i].get("is_best")]
        spans.append(
            StageSpan(
                name=str(stage.get("name", number + 1)),
                begin=begin,
                end=own[-1] + 1 if own else begin,
                best=best[-1] if best else None,
            )
        )
    return spans


def _stage(facts: TrainingFacts, number: int, span: StageSpan) -> dict[str, Any]:
    """Return what came of one stage, for the table of stages."""
    rows = facts.history[span.begin : span.end]
    best = facts.history[span.best] if span.best is not None else None
    return {
        "number": number + 1,
        "name": span.name,
        "num_epochs": len(rows),
        "best": best,
        "seconds": sum(row.get("seconds") or 0.0 for row in rows),
        "images_per_s": _middle([row.get("images_per_s") for row in rows]),
    }


def _settings_of_stages(facts: TrainingFacts) -> list[tuple[str, list[object]]]:
    """Return each setting with its value in every stage, in the order they first occur."""
    names = dict.fromkeys(
        key for stage in facts.stages for key in stage if key not in _FIELDS_OF_A_STAGE
    )
    return [(name, [stage.get(name) for stage in facts.stages]) for name in names]


def _curves(facts: TrainingFacts, spans: Sequence[StageSpan]) -> list[dict[str, Any]]:
    """Draw what can be drawn: each chart with its heading and legend."""

    def series(name: str, kind: str, key: str) -> Series:
        return Series(name=name, kind=kind, values=[row.get(key) for row in facts.history])

    charts: list[tuple[str, curves.Scale, list[Series]]] = [
        (
            "Loss",
            "linear",
            [series("validation", "s-val", "val_loss"), series("training", "s-train", "loss")],
        ),
        (
            "Accuracy",
            "percent",
            [
                series("validation", "s-val", "val_accuracy"),
                series("validation, macro-F1", "s-third", "val_macro_f1"),
                series("training, augmented views", "s-train", "accuracy"),
            ],
        ),
        ("Learning rate", "log", [series("at the epoch's end", "s-val", "learning_rate")]),
        ("Images per second", "linear", [series("training", "s-val", "images_per_s")]),
    ]
    drawn = []
    for heading, scale, lines in charts:
        known = [line for line in lines if any(value is not None for value in line.values)]
        if known:
            drawn.append(
                {
                    "heading": heading,
                    "chart": curves.epoch_curves(known, spans, f"{heading} by epoch", scale),
                    "legend": curves.line_legend(known),
                }
            )
    return drawn


def _middle(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.median(known) if known else None


def _is_finite(value: float | None) -> bool:
    return value is None or math.isfinite(value)


def _data_uri(pixels: npt.NDArray[np.uint8]) -> str:
    picture = Image.fromarray(pixels).resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
