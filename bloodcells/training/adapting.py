"""A bundle for another lab from ten to twenty labelled cells a class, in minutes on a CPU.

It measures itself: every cell is predicted by a network that was fitted without any cell of its
slide, and a bundle that does worse than the one it came from is refused. Knows nothing of stores,
of runs or of how cells came by their labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax
from torch import Tensor

from bloodcells.bootstrap import GroupedTally
from bloodcells.bundle import ModelBundle
from bloodcells.cells import CLASSES
from bloodcells.detector import Detector, limits_of
from bloodcells.errors import BundleError
from bloodcells.evaluation import Interval
from bloodcells.imaging import Preprocess, content_hash
from bloodcells.run_evaluation import Figures
from bloodcells.scoring import Scorer
from bloodcells.sites import MIN_IMAGES, HomeReference, compare_with_home, measure_all
from bloodcells.sites.home import STORE_SIZE
from bloodcells.training.adapting_fit import (
    Cells,
    Encoded,
    Fitting,
    Floats,
    IntArray,
    all_decoded,
    fit_network,
    seen_by,
    view_features,
)
from bloodcells.training.adapting_folds import folds_of, require_enough
from bloodcells.training.adapting_view import SiteViews
from bloodcells.training.calibration import REVIEW_ERROR, calibrate
from bloodcells.training.shipping import figures_for_card

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Adaptation:
    """What came of adapting a bundle.

    Attributes:
        bundle: the new one.
        before: the given bundle on the labelled cells; where the crop that was found for the
            site, or its network for other labs, made it better, with that.
        after: the new way on the same cells, each predicted without any cell of its slide, but for
            those of ``not_apart``.
        counts: labelled cells a class, ``int64 (8,)``.
        num_slides: slides that they are from.
        not_apart: classes with cells on a slide that is all there is of some class, so that cells
            of that slide were learned from; their figures say less of how other slides will fare.
    """

    bundle: ModelBundle
    before: Figures
    after: Figures
    counts: IntArray
    num_slides: int
    not_apart: tuple[str, ...]

    @property
    def is_worse(self) -> bool:
        """Whether the new bundle has a lower balanced accuracy than the given one."""
        after, before = self.after.evaluation, self.before.evaluation
        return after.balanced_accuracy < before.balanced_accuracy

    def require_no_worse(self) -> None:
        """Refuse to ship a bundle that is worse than the one it came from.

        Raises:
            BundleError: it is.
        """
        if self.is_worse:
            after, before = self.after.evaluation, self.before.evaluation
            raise BundleError(
                f"the adapted bundle is worse on these {before.num_labelled} cells than the given "
                f"one (balanced accuracy {after.balanced_accuracy:.3f}, was "
                f"{before.balanced_accuracy:.3f}) and was not written: go on with the given one, "
                "check the labels, or give more cells of each class"
            )


def adapt(
    bundle: ModelBundle,
    images: Sequence[Encoded],
    labels: IntArray,
    groups: Sequence[str],
    *,
    fitting: Fitting | None = None,
    about: dict[str, Any] | None = None,
    say: Say = lambda text: None,
) -> Adaptation:
    """Adapt a bundle to the lab that labelled cells come from.

    The same cells in the same order give the same bundle on the same hardware.

    Args:
        bundle: of any lab.
        images: N cells, encoded, or pixels ``uint8 (H, W, 3)``.
        labels: index into ``CLASSES``, ``int64 (N,)``.
        groups: the slide of each, N strings.
        fitting: how its network is fitted.
        about: further facts of the data: ``about`` (source and licence), ``stores``, ``left_out``.
        say: is told of progress.

    Raises:
        ConfigurationError: there are fewer than two classes, or too few cells of one.
        BundleError: the bundle's model cannot be adapted.
        ImageError: a cell cannot be decoded.
    """
    fitting = fitting or Fitting()
    labels = np.asarray(labels, np.int64)
    require_enough(labels)
    folds, not_apart = folds_of(labels, groups, seed=fitting.seed)
    say("looking for the crop that suits")
    first = begun_with(bundle, images)
    views = SiteViews(first, images, labels, fitting.hold)
    seen = views.best(np.arange(len(labels)))
    before = _better(
        [
            figures_of(_scored(given, images, preprocess), labels, groups)
            for given in dict.fromkeys((bundle, first))
            for preprocess in dict.fromkeys((bundle.preprocess, seen))
        ]
    )
    logits, strangeness = _held_out(views, images, folds, fitting, say)
    counts = np.bincount(labels, minlength=len(CLASSES)).astype(np.int64)
    calibration, _ = calibrate(logits, labels, counts)
    after = figures_of(
        softmax(logits.astype(np.float64) / calibration.temperature, axis=1), labels, groups
    )
    say(f"fitting to all cells, seen with a crop of {seen.crop:.2f}")
    fitted, cells = fit_to_cells(views, np.arange(len(labels)), fitting)
    fitted = replace(fitted, calibration=calibration)
    adapted = Adaptation(
        bundle=_with_detector(fitted, cells, fitting, strangeness),
        before=before,
        after=after,
        counts=counts,
        num_slides=len(set(groups)),
        not_apart=not_apart,
    )
    finished = replace(
        adapted.bundle,
        home=learn_site(images, labels),
        facts=facts_of(adapted, bundle, first, images, fitting, about or {}),
    )
    return replace(adapted, bundle=finished)


def begun_with(bundle: ModelBundle, images: Sequence[Encoded]) -> ModelBundle:
    """Return the bundle that is fitted: the one for other labs where the cells are of another."""
    if bundle.elsewhere is None:
        return bundle
    compared = compare_with_home(images, bundle.home, bundle.digest)
    return bundle.elsewhere if compared.standing == "elsewhere" else bundle


def fit_to_cells(views: SiteViews, rows: IntArray, fitting: Fitting) -> tuple[ModelBundle, Cells]:
    """Return a bundle fitted to some labelled cells with the crop that suits them, and the cells.

    Args:
        views: of all labelled cells, by the bundle to begin with.
        rows: the cells that are learned from; no other has any influence.
        fitting: how.

    Raises:
        BundleError: the bundle's model cannot be adapted.
    """
    cells = views.cells(rows)
    return fit_network(views.bundle, cells, fitting), cells


def figures_of(
    probabilities: npt.NDArray[np.floating[Any]], labels: IntArray, groups: Sequence[str]
) -> Figures:
    """Return figures and intervals by slide, from calibrated probabilities ``(N, 8)``."""
    tally = GroupedTally()
    tally.add(
        labels, probabilities, probabilities.argmax(1), probabilities.max(1), list(map(str, groups))
    )
    evaluation, intervals = tally.evaluation(), tally.intervals()
    assert evaluation is not None
    assert intervals is not None
    return Figures(evaluation=evaluation, intervals=intervals)


def learn_site(images: Sequence[Encoded], labels: IntArray) -> HomeReference | None:
    """Learn what the site's pictures look like; ``None`` from fewer than ``MIN_IMAGES``.

    The threshold is what stores drawn from these very pictures reach. Where the centre lies is as
    uncertain as such a store of as many pictures, so it is widened by that.
    """
    measures = measure_all(images)
    if len(measures) < MIN_IMAGES:
        return None
    home = HomeReference.learn(measures, labels)
    widened = home.threshold * float(np.sqrt(1 + STORE_SIZE / len(measures)))
    return replace(home, threshold=round(widened, 4))


def facts_of(
    adapted: Adaptation,
    parent: ModelBundle,
    first: ModelBundle,
    images: Sequence[Encoded],
    fitting: Fitting,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Return what the new bundle says of itself.

    Args:
        adapted: the bundle so far, and its figures.
        parent: the given bundle.
        first: that one, or its bundle for other labs: whose network was fitted.
        images: the labelled cells.
        fitting: how it was fitted.
        about: further facts of the data.
    """
    hashes = sorted(content_hash(image) for image in images)
    num = len(hashes)
    evaluation = adapted.after.evaluation
    # A model card's table has a recall for each of the eight, and nothing is known of some here.
    has_all = all(c.num_labelled for c in evaluation.classes)
    return {
        "data": {
            "about": "labelled cells of another lab than the first training's",
            "stores": [],
            "left_out": {},
            **about,
            "num_train": num,
            "num_validation": num,
            "content_digest": f"sha256:{hashlib.sha256(chr(10).join(hashes).encode()).hexdigest()}",
        },
        "pretraining": f"the bundle {first.digest}, {first.facts.get('pretraining', 'unknown')}",
        "adapted": {
            "from": parent.digest,
            "network": "home" if first is parent else "elsewhere",
            "cells": {name: int(n) for name, n in zip(CLASSES, adapted.counts, strict=True) if n},
            "slides": adapted.num_slides,
            "classes_not_kept_apart": list(adapted.not_apart),
            "measured": "cross-validation, cells predicted without the cells of their slide"
            + (" where they could be kept apart" if adapted.not_apart else ""),
            "intervals_by": adapted.after.intervals.unit,
            "before": _summary(adapted.before),
            "after": _summary(adapted.after),
            "parent": {"data": parent.facts.get("data")},
        },
        "recipe": {"model": first.model_name, "stages": [], **fitting.to_dict()},
        **({"validation": figures_for_card(evaluation)} if has_all else {}),
        "review": {"accepted_error": REVIEW_ERROR},
        "software": {name: version(name) for name in ("bloodcells", "torch", "timm")},
    }


def _summary(figures: Figures) -> dict[str, Any]:
    def rounded(interval: Interval) -> list[float]:
        return [round(float(number), 4) for number in interval]

    return {
        "accuracy": rounded(figures.intervals.figures["accuracy"]),
        "balanced_accuracy": rounded(figures.intervals.figures["balanced_accuracy"]),
        "recall": {c.name: rounded(c.recall) for c in figures.intervals.classes if c.num_labelled},
    }


def _better(found: Sequence[Figures]) -> Figures:
    return max(found, key=lambda figures: figures.evaluation.balanced_accuracy)


def _scored(bundle: ModelBundle, images: Sequence[Encoded], preprocess: Preprocess) -> Floats:
    """Return what the bundle makes of pictures as it sees them, ``float32 (N, 8)``."""
    return Scorer(bundle).probabilities(all_decoded(images, preprocess))


def _held_out(
    views: SiteViews,
    images: Sequence[Encoded],
    folds: IntArray,
    fitting: Fitting,
    say: Say,
) -> tuple[Floats, Tensor]:
    """Return logits ``(N, 8)`` and strangeness ``(N,)`` of cells by what was learned without them.

    The crop too is chosen without the cells that are held out, and the detector knows none of them.
    Without a detector nothing is strange.
    """
    found: list[Floats] = []
    strange: list[Tensor] = []
    order: list[IntArray] = []
    num_folds = int(folds.max()) + 1
    for fold in range(num_folds):
        held, kept = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        say(f"fold {fold + 1} of {num_folds}: fitting to {len(kept)} cells")
        fitted, learned = fit_to_cells(views, kept, fitting)
        pixels = all_decoded([images[row] for row in held.tolist()], fitted.preprocess)
        features, logits = seen_by(fitted.build(), pixels)
        found.append(logits)
        if views.bundle.detector:
            known = _detector(fitted, learned, fitting)
            strange.append(known.strangeness(torch.from_numpy(features)))
        else:
            strange.append(torch.zeros(len(held)))
        order.append(held)
    back = np.argsort(np.concatenate(order))
    return np.concatenate(found)[back], torch.cat(strange)[back]


def _with_detector(
    fitted: ModelBundle, cells: Cells, fitting: Fitting, strangeness: Tensor
) -> ModelBundle:
    """Return the bundle with a detector of the site, where the given one had any.

    Args:
        fitted: the bundle without it.
        cells: N of them.
        fitting: how they are viewed.
        strangeness: of each cell to a detector that does not know it, ``float32 (N,)``.
    """
    if fitted.detector is None:
        return fitted
    typical, limit = limits_of(strangeness)
    calibration = replace(fitted.calibration, strange_typical=typical, strange_above=limit)
    detector = _detector(fitted, cells, fitting)
    return replace(fitted, detector=detector, calibration=calibration)


def _detector(fitted: ModelBundle, cells: Cells, fitting: Fitting) -> Detector:
    """Return a detector that knows many views of each cell."""
    features, rows = view_features(fitted.build(), cells, fitting)
    return Detector.of(features, cells.labels[rows])


def table_of(adapted: Adaptation) -> str:
    """Return cells, and recall before and after with intervals, a class a line, as text."""
    cells = dict(zip(CLASSES, map(int, adapted.counts), strict=True))
    width = max(map(len, CLASSES))
    before, after = adapted.before.intervals, adapted.after.intervals

    def line(name: str, number: int, first: Interval, second: Interval) -> str:
        return f"{name:{width}}{number:>7}   {_shown(first)}   {_shown(second)}"

    lines = [f"{'':{width}}{'cells':>7}   {'before':19}   {'after':19}"]
    for one, two in zip(before.classes, after.classes, strict=True):
        if one.num_labelled:
            lines.append(line(one.name, cells[one.name], one.recall, two.recall))
    for figure, name in (("accuracy", "accuracy"), ("balanced_accuracy", "balanced")):
        lines.append(line(name, sum(cells.values()), before.figures[figure], after.figures[figure]))
    return "\n".join(lines)


def _shown(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f}–{interval.high:.3f})"
