"""How right a run is, by the labels of its images: figures, intervals, and what they leave out.

Streams the run's score files; memory grows with the number of shards, and with a table of labels
where one is given, never with the number of scored images. Knows nothing of HTML or flags.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bloodcells import publish, storage
from bloodcells.bootstrap import GroupedTally, Intervals, Unit
from bloodcells.cells import CLASSES
from bloodcells.errors import RunError
from bloodcells.evaluation import Evaluation, Interval, Selective, SelectiveTally, wilson
from bloodcells.labels import ImageTable
from bloodcells.parts import class_indices, read_parts, run_record
from bloodcells.run_labels import RunLabels, plan_of

_COLUMNS: Final = [
    "image_uri",
    "slide_id",
    "predicted_class",
    "confidence",
    *(f"prob_{name}" for name in CLASSES),
    "out_of_domain",
    "needs_review",
    "label",
    "bundle_digest",
    "shard_id",
]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Figures over some of the labelled images, and the same with their intervals."""

    evaluation: Evaluation
    intervals: Intervals


@dataclass(frozen=True, kw_only=True, eq=False)
class RunEvaluation:
    """What the labels say of a run.

    Attributes:
        run_uri: the run folder.
        run: what ``run.json`` says.
        bundle_digest: of the model that scored it.
        labels_uri: the table that the labels are from; ``None`` for the run's own.
        split: the part of the images that was looked at; ``None`` for all.
        num_listed: images in the plan.
        num_missing: images of the plan that have neither a score nor a reason why not.
        num_scored: images with a score.
        num_outside_split: of those, the ones outside ``split``.
        num_unlabelled: of the rest, the ones without a label of the eight classes.
        unknown_labels: labels of the table that are none of the eight, with the images that have
            them, most frequent first.
        num_contradicting: images whose label in the table is not the run's own.
        num_rows_unused: rows of the table of labels that are about no image of the run.
        num_quarantined: labelled images without a score, by class, ``int64 (8,)``.
        num_out_of_domain: labelled images that are unlike the training data.
        whole: figures over all labelled images that were scored.
        kept: the same over those that no person is asked to look at; ``None`` where there is none.
        num_kept: their number.
        num_errors: labelled images that are wrong.
        num_errors_kept: of those, the ones that no person is asked to look at.
        selective: how many errors other limits of confidence would leave among the kept.
    """

    run_uri: str
    run: Mapping[str, Any]
    bundle_digest: str
    labels_uri: str | None
    split: str | None
    num_listed: int
    num_missing: int
    num_scored: int
    num_outside_split: int
    num_unlabelled: int
    unknown_labels: Mapping[str, int]
    num_contradicting: int
    num_rows_unused: int
    num_quarantined: IntArray
    num_out_of_domain: int
    whole: Figures
    kept: Figures | None
    num_kept: int
    num_errors: int
    num_errors_kept: int
    selective: Selective

    @property
    def num_labelled(self) -> int:
        """Labelled images that the figures are over."""
        return self.whole.evaluation.num_labelled

    @property
    def coverage(self) -> Interval:
        """Share of the labelled images that no person is asked to look at."""
        return wilson(self.num_kept, self.num_labelled)


@dataclass(slots=True, kw_only=True)
class _Counts:
    num_scored: int = 0
    num_outside_split: int = 0
    num_unlabelled: int = 0
    num_out_of_domain: int = 0
    num_errors: int = 0
    num_errors_kept: int = 0
    quarantined: IntArray = field(default_factory=lambda: np.zeros(len(CLASSES), np.int64))
    digests: set[str] = field(default_factory=set)
    selective: SelectiveTally = field(default_factory=SelectiveTally)


def evaluate_run(
    run_uri: str,
    *,
    labels: ImageTable | None = None,
    splits: ImageTable | None = None,
    split: str | None = None,
    by: Unit = "slide",
    incomplete: bool = False,
) -> RunEvaluation:
    """Compare a run's scores with labels.

    Args:
        run_uri: the run folder.
        labels: a table of labels, instead of those that the run has from its stores.
        splits: a table that says which split an image is in.
        split: look only at the images that ``splits`` says are in it.
        by: what the bootstrap draws (see ``bootstrap.GroupedTally.intervals``).
        incomplete: accept a run of which images are still to be scored.

    Raises:
        RunError: there is no run, it is incomplete, damaged, or has no labelled image.
        ConfigurationError: a table fits no image of the run, or fits ambiguously.
        StorageError: the run folder cannot be reached.
    """
    run_uri = storage.normalise(run_uri)
    run = run_record(run_uri)
    plan = plan_of(run_uri)
    published = publish.published_shards(run_uri)
    done = [shard_id for shard_id in plan if shard_id in published]
    num_listed = sum(shard.num_images for shard in plan.values())
    num_missing = num_listed - sum(plan[shard_id].num_images for shard_id in done)
    if (num_missing or run.get("status") != "complete") and not incomplete:
        raise RunError(
            f"{run_uri} is not complete (status {run.get('status')}, {num_missing:,} of "
            f"{num_listed:,} images without a result): finish it with the jobs.score command that "
            "began it, or evaluate what is there with --incomplete"
        )
    reader = RunLabels(plan, labels, splits, split)
    counts, whole, kept = _Counts(), GroupedTally(), GroupedTally()
    for part in read_parts(run_uri, "scores", done, _COLUMNS):
        if len(part):
            _count(part, reader, counts, whole, kept)
    for part in read_parts(run_uri, "quarantine", done, ["image_uri", "shard_id"]):
        labels_of_part = reader.of_quarantined(part.filter(pa.array(reader.chosen(part))))
        counts.quarantined += np.bincount(
            labels_of_part[labels_of_part >= 0], minlength=len(CLASSES)
        )
    reader.require_matches()
    evaluation, intervals = whole.evaluation(), whole.intervals(by)
    selective = counts.selective.selective()
    if evaluation is None or intervals is None or selective is None:
        raise RunError(_no_labels(run_uri, reader, labels, split))
    if len(counts.digests) > 1:
        raise RunError(
            f"{run_uri} holds scores of several bundles ({', '.join(sorted(counts.digests))}): "
            "score again with --restart"
        )
    kept_evaluation, kept_intervals = kept.evaluation(), kept.intervals(by)
    return RunEvaluation(
        run_uri=run_uri,
        run=run,
        bundle_digest=counts.digests.pop(),
        labels_uri=None if labels is None else labels.uri,
        split=split,
        num_listed=num_listed,
        num_missing=num_missing,
        num_scored=counts.num_scored,
        num_outside_split=counts.num_outside_split,
        num_unlabelled=counts.num_unlabelled,
        unknown_labels=dict(reader.unknown.most_common()),
        num_contradicting=reader.num_contradicting,
        num_rows_unused=0 if labels is None else len(labels.values) - len(reader.used),
        num_quarantined=counts.quarantined,
        num_out_of_domain=counts.num_out_of_domain,
        whole=Figures(evaluation=evaluation, intervals=intervals),
        kept=Figures(evaluation=kept_evaluation, intervals=kept_intervals)
        if kept_evaluation is not None and kept_intervals is not None
        else None,
        num_kept=0 if kept_evaluation is None else kept_evaluation.num_labelled,
        num_errors=counts.num_errors,
        num_errors_kept=counts.num_errors_kept,
        selective=selective,
    )


def _count(
    part: pa.Table,
    reader: RunLabels,
    counts: _Counts,
    whole: GroupedTally,
    kept: GroupedTally,
) -> None:
    """Add the rows of one score file."""
    counts.num_scored += len(part)
    counts.digests.update(part["bundle_digest"].unique().to_pylist())
    chosen = reader.chosen(part)
    counts.num_outside_split += int((~chosen).sum())
    part = part.filter(pa.array(chosen))
    labels = reader.of_scored(part)
    known = labels >= 0
    counts.num_unlabelled += int((~known).sum())
    part, labels = part.filter(pa.array(known)), labels[known]
    if len(part) == 0:
        return
    predicted = class_indices(part["predicted_class"])
    confidence = part["confidence"].to_numpy()
    probabilities = np.column_stack([part[f"prob_{name}"].to_numpy() for name in CLASSES])
    slides = np.array(part["slide_id"].to_pylist(), object)
    alien = part["out_of_domain"].to_numpy()
    review = part["needs_review"].to_numpy()
    unseen = ~review & ~alien
    wrong = labels != predicted
    counts.selective.add(wrong, confidence, review, alien)
    counts.num_out_of_domain += int(alien.sum())
    counts.num_errors += int(wrong.sum())
    counts.num_errors_kept += int((wrong & unseen).sum())
    for tally, rows in ((whole, np.ones(len(part), bool)), (kept, unseen)):
        if rows.any():
            tally.add(
                labels[rows],
                probabilities[rows],
                predicted[rows],
                confidence[rows],
                slides[rows].tolist(),
            )


def _no_labels(
    run_uri: str, reader: RunLabels, labels: ImageTable | None, split: str | None
) -> str:
    where = "" if split is None else f" in the split {split}"
    if labels is None:
        return (
            f"{run_uri} has no scored image with a label{where}: score a store whose folders are "
            "named after classes, or give a table with --labels"
        )
    unknown = ", ".join(repr(name) for name, _ in reader.unknown.most_common(5))
    return (
        f"--labels {labels.uri} gives no scored image of {run_uri}{where} a label of the eight "
        f"classes{f' (it says {unknown})' if unknown else ''}; they are {', '.join(CLASSES)}"
    )
