"""An evaluation as files: ``evaluation.json`` with all figures, ``evaluation.md``, ``report.html``.

Knows nothing of how the figures were found.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from bloodcells import storage
from bloodcells.bootstrap import FIGURES, NUM_RESAMPLES, SEED
from bloodcells.cells import CLASSES
from bloodcells.evaluation import Interval, Selective
from bloodcells.report.formats import plain_text, share
from bloodcells.report.page import render_page
from bloodcells.run_evaluation import Figures, RunEvaluation

JSON_NAME: Final = "evaluation.json"
FORMAT: Final = 1
"""Layout of ``evaluation.json``."""

TITLES: Final[Mapping[str, str]] = {
    "accuracy": "accuracy, %",
    "balanced_accuracy": "balanced accuracy, %",
    "macro_f1": "macro-F1, %",
    "log_loss": "log-loss",
    "brier": "Brier score (0–2)",
    "ece": "calibration error (ECE), %",
}


def write_evaluation(folder_uri: str, found: RunEvaluation) -> str:
    """Write an evaluation's files into a folder, ``evaluation.json`` last, and return its URI.

    Raises:
        StorageError: it cannot be written there.
    """
    folder_uri = storage.normalise(folder_uri)
    page = render_page(
        "evaluation.html",
        found=found,
        run=found.run,
        titles=TITLES,
        remarks=remarks(found),
        num_resamples=NUM_RESAMPLES,
        confusions=found.whole.evaluation.most_confused(6),
        quarantined=[
            (name, count)
            for name, count in zip(CLASSES, found.num_quarantined.tolist(), strict=True)
            if count
        ],
        shown=shown,
    )
    record = json.dumps(to_dict(found), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    storage.put(storage.join(folder_uri, "report.html"), page.encode())
    storage.put(storage.join(folder_uri, "evaluation.md"), markdown(found).encode())
    storage.put(storage.join(folder_uri, JSON_NAME), record.encode())
    return folder_uri


def headline(found: RunEvaluation) -> str:
    """Return the figures as lines for a terminal."""
    lines = [
        f"{TITLES[name]:<28}{shown(name, figure)}"
        for name, figure in found.whole.intervals.figures.items()
    ]
    drawn = f"{found.whole.intervals.num_groups:,} {found.whole.intervals.unit}s"
    lines.append(
        f"over {found.num_labelled:,} labelled images; 95 % intervals by drawing {drawn} anew"
    )
    if found.kept is not None and found.num_kept < found.num_labelled:
        accuracy = shown("accuracy", found.kept.intervals.figures["accuracy"])
        lines.append(
            f"not sent to review: {100 * found.coverage.value:.1f} % of the images, "
            f"accuracy {accuracy} %, {found.num_errors_kept:,} of {found.num_errors:,} errors"
        )
        most = 100 * found.selective.error_at_most
        lines.append(f"of those at most {most:.2f} % are wrong (one-sided, with 95 % confidence)")
    return "\n".join([*lines, *(f"note: {remark}" for remark in remarks(found))])


def remarks(found: RunEvaluation) -> list[str]:
    """Return, in sentences, what the figures leave out and what to keep in mind."""
    said = []
    if found.num_missing:
        said.append(
            f"The run is incomplete: {found.num_missing:,} of {found.num_listed:,} images have no "
            "result and are in no figure."
        )
    elif found.run.get("status") != "complete":
        said.append("The run was not closed: images may be missing that it should have listed.")
    if problems := found.run.get("source_problems"):
        said.append(
            f"{len(problems):,} source(s) of the run could not be listed in full; their other "
            "images are in no figure."
        )
    if num := int(found.num_quarantined.sum()):
        said.append(
            f"{num:,} labelled image(s) could not be scored and are in no figure; counted as "
            f"wrong, accuracy would be {100 * _accuracy_with(found, num):.2f} %."
        )
    if absent := [c.name for c in found.whole.evaluation.classes if c.num_labelled == 0]:
        said.append(
            f"No image is labelled {', '.join(absent)}: means over classes are of the other "
            f"{len(CLASSES) - len(absent)}."
        )
    if found.unknown_labels:
        names = ", ".join(
            f"{plain_text(name)} ({count:,})"
            for name, count in list(found.unknown_labels.items())[:5]
        )
        said.append(f"Labels of no class of the eight are left out: {names}.")
    if found.num_contradicting:
        said.append(
            f"{found.num_contradicting:,} image(s) have another label in the run than in the "
            "table; the table's counts."
        )
    if found.num_rows_unused and found.split is None:
        said.append(f"{found.num_rows_unused:,} row(s) of the table are about no image of the run.")
    if found.whole.intervals.warning:
        said.append(found.whole.intervals.warning)
    return said


def to_dict(found: RunEvaluation) -> dict[str, Any]:
    """Return all figures as plain values, fit for JSON; ``None`` where one is undefined."""
    bundle = found.run.get("bundle") or {}
    intervals = found.whole.intervals
    return {
        "format": FORMAT,
        "run": {
            "uri": found.run_uri,
            "run_id": found.run.get("run_id"),
            "status": found.run.get("status"),
            "listed": found.num_listed,
            "missing": found.num_missing,
            "scored": found.num_scored,
        },
        "bundle": {
            "digest": found.bundle_digest,
            "uri": bundle.get("uri"),
            "model_name": bundle.get("model_name"),
        },
        "labels": {
            "table": found.labels_uri,
            "split": found.split,
            "labelled": found.num_labelled,
            "outside_split": found.num_outside_split,
            "unlabelled": found.num_unlabelled,
            "unknown": dict(found.unknown_labels),
            "contradicting": found.num_contradicting,
            "rows_unused": found.num_rows_unused,
            "quarantined": dict(zip(CLASSES, found.num_quarantined.tolist(), strict=True)),
            "out_of_domain": found.num_out_of_domain,
        },
        "bootstrap": {
            "unit": intervals.unit,
            "groups": intervals.num_groups,
            "resamples": NUM_RESAMPLES,
            "seed": SEED,
            "confidence_level": 0.95,
            "warning": intervals.warning or None,
        },
        "all": _figures(found.whole),
        "not_sent_to_review": {
            "images": found.num_kept,
            "coverage": _interval(found.coverage),
            "errors": found.num_errors_kept,
            "errors_of_all": found.num_errors,
            "error_at_most": found.selective.error_at_most,
            **({} if found.kept is None else _figures(found.kept)),
        },
        "risk_coverage": _risk_coverage(found.selective),
        "remarks": remarks(found),
    }


def markdown(found: RunEvaluation) -> str:
    """Return the figures as Markdown."""
    kept = found.kept if found.num_kept < found.num_labelled else None
    columns = [("all", found.whole), *([("not sent to review", kept)] if kept else [])]
    intervals = found.whole.intervals
    lines = [
        "# Evaluation",
        "",
        f"Run `{_code(found.run_uri)}`, bundle `{_code(found.bundle_digest)}`. "
        f"{found.num_labelled:,} labelled images"
        + (f" of the split `{_code(found.split)}`" if found.split else "")
        + (f", labels from `{_code(found.labels_uri)}`" if found.labels_uri else "")
        + f". 95 % intervals by drawing {intervals.num_groups:,} {intervals.unit}s anew "
        f"{NUM_RESAMPLES:,} times.",
        "",
        f"| figure | {' | '.join(name for name, _ in columns)} |",
        f"|---|{'---|' * len(columns)}",
        f"| images | {' | '.join(f'{f.evaluation.num_labelled:,}' for _, f in columns)} |",
        *(
            f"| {TITLES[name]} | "
            + " | ".join(shown(name, f.intervals.figures[name]) for _, f in columns)
            + " |"
            for name in FIGURES
        ),
        "",
        "| class | labelled | quarantined | precision, % | recall, % | F1, % |",
        "|---|---|---|---|---|---|",
        *(
            f"| {c.name} | {c.num_labelled:,} | {num:,} | {shown('f1', c.precision)} | "
            f"{shown('f1', c.recall)} | {shown('f1', c.f1)} |"
            for c, num in zip(intervals.classes, found.num_quarantined.tolist(), strict=True)
        ),
        "",
        *([f"- {_alone(found.selective)}"] if kept else []),
        *(f"- {remark}" for remark in remarks(found)),
        "- For research use: these figures hold for images like these, not for another laboratory.",
        "",
    ]
    return "\n".join(lines)


def _alone(found: Selective) -> str:
    """Say how far the classifier may be left alone."""
    return (
        f"Not sent to review: {found.num_kept:,} of {found.num_labelled:,} images "
        f"({share(found.num_kept, found.num_labelled)}), {found.num_wrong:,} of them wrong "
        f"({share(found.num_wrong, found.num_kept, 2)}; with 95 % confidence at most "
        f"{share(found.error_at_most, 1, 2)}, if images are independent of each other)."
    )


def shown(name: str, figure: Interval) -> str:
    """Format a figure with its interval: shares in per cent, losses as they are."""
    if math.isnan(figure.value):
        return "–"
    factor, digits = (1, 4) if name in ("log_loss", "brier") else (100, 2)
    value, low, high = (f"{factor * v:.{digits}f}" for v in figure)
    return f"{value} [{low}–{high}]"


def _figures(figures: Figures) -> dict[str, Any]:
    evaluation, intervals = figures.evaluation, figures.intervals
    reliability = evaluation.reliability
    return {
        "images": evaluation.num_labelled,
        **{name: _interval(figure) for name, figure in intervals.figures.items()},
        "classes": {
            c.name: {
                "labelled": c.num_labelled,
                "predicted": c.num_predicted,
                "precision": _interval(c.precision),
                "recall": _interval(c.recall),
                "f1": _interval(c.f1),
            }
            for c in intervals.classes
        },
        "confusion": evaluation.confusion.tolist(),
        "reliability": [
            {
                "images": int(count),
                "mean_confidence": _number(float(confidence)),
                "accuracy": _interval(accuracy),
            }
            for count, confidence, accuracy in zip(
                reliability.counts, reliability.confidence, reliability.accuracy, strict=True
            )
        ],
    }


def _risk_coverage(found: Selective) -> list[dict[str, float]]:
    """Return the error among the kept cells at every twentieth of coverage, and at the most."""
    places = np.searchsorted(found.coverage, np.arange(0.05, 1.0, 0.05) - 1e-9)
    last = len(found.coverage) - 1
    return [
        {"coverage": float(found.coverage[i]), "error": float(found.risk[i])}
        for i in sorted({min(int(place), last) for place in places} | {last})
        if i >= 0
    ]


def _interval(figure: Interval) -> dict[str, float | None]:
    return {
        "value": _number(figure.value),
        "low": _number(figure.low),
        "high": _number(figure.high),
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _accuracy_with(found: RunEvaluation, num_wrong: int) -> float:
    return (found.num_labelled - found.num_errors) / (found.num_labelled + num_wrong)


def _code(text: str) -> str:
    """Make a name safe between backquotes of Markdown."""
    return plain_text(text).replace("`", "'").replace("|", "\\|")
