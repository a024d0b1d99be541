"""Ten labelled cells a class of another lab: what ``jobs.adapt`` makes of them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.site_bench import LABS, Bench, Figures, balanced, cells_of_lab, classes_of
from bloodcells.scoring import Scorer
from bloodcells.training.adapting import begun_with, fit_to_cells
from bloodcells.training.adapting_fit import Fitting
from bloodcells.training.adapting_view import SiteViews


def few(bench: Bench, *, draws: int = 10, a_class: int = 10) -> Figures:
    """Adapt to ten labelled cells a class, test on the cells of all smears not learned from.

    Those may lack a class; the balanced accuracy is then over the others. BCCD's smears are not
    known, so each of its cells counts as one. The network is the one that ``jobs.adapt`` ships; its
    cross-validation, which takes five times as long and decides nothing here, is left out.
    """
    found: Figures = {}
    for name, left_out in LABS.items():
        cells = cells_of_lab(bench, name, left_out)
        groups = np.array([_smear(each) for each in cells.names])
        drawn: list[Figures] = []
        for draw in range(draws):
            chosen = _draw(cells.labels, groups, a_class, np.random.default_rng(draw))
            test = cells.take(np.flatnonzero(~np.isin(groups, groups[chosen])))
            begun = time.monotonic()
            train = cells.take(chosen)
            first = begun_with(bench.bundle, train.images)
            views = SiteViews(first, train.images, train.labels, Fitting.hold)
            adapted, _ = fit_to_cells(views, np.arange(len(chosen)), Fitting())
            took = time.monotonic() - begun
            there = replace(bench, bundle=adapted, scorer=Scorer(adapted))
            before, after = (
                balanced(test.labels, classes_of(each.verdicts(test.images)))[0]
                for each in (bench, there)
            )
            drawn.append(
                {
                    "balanced_accuracy": after,
                    "before": before,
                    "crop": adapted.preprocess.crop,
                    "num_tested": len(test.labels),
                    "has_all_classes": set(test.labels) == set(cells.labels),
                    "seconds": took,
                }
            )
            print(f"{name}, draw {draw}: {before:.3f} before, {after:.3f} after ({took:.0f} s)")
        figures = [each["balanced_accuracy"] for each in drawn]
        found[name] = {
            "mean": float(np.mean(figures)),
            "before": float(np.mean([each["before"] for each in drawn])),
            "sd": float(np.std(figures, ddof=1)),
            "have_all_classes": sum(each["has_all_classes"] for each in drawn),
            "draws": drawn,
        }
        print(
            f"{name}, {a_class} labels a class: balanced accuracy {np.mean(figures):.3f}, "
            f"{min(figures):.3f} to {max(figures):.3f} in {draws} draws, "
            f"{found[name]['have_all_classes']} of them tested on all classes; with the given "
            f"bundle {found[name]['before']:.3f}"
        )
    return found


def _smear(name: str) -> str:
    """Return the smear that a file's name carries (``train_M-8_0118_0.jpg``), or the name."""
    parts = Path(name).stem.split("_")
    return parts[1] if len(parts) > 2 and "-" in parts[1] else name


def _draw(
    labels: npt.NDArray[np.int64],
    groups: npt.NDArray[np.str_],
    a_class: int,
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Draw cells of each class, from as few smears as hold enough of them, in random order."""
    chosen: list[int] = []
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        order = rng.permutation(np.unique(groups[mine]))
        rank = {group: place for place, group in enumerate(order)}
        mine = rng.permutation(mine)
        by_smear = sorted(mine, key=lambda row: rank[groups[row]])
        chosen += by_smear[:a_class]
    return np.array(chosen, np.int64)
