"""How the shipped bundle copes with other labs, and whether it knows that it is elsewhere.

``python -m benchmarks.sites --data FOLDER`` prints the whole table with 95 % intervals and
writes it as JSON. ``FOLDER`` holds ``pbc/``, ``other_labs/`` and ``fields/``. ``--only`` measures
some parts:

- ``home``: accuracy at home with ``--site auto`` and ``none`` (of ``--split``), and review
- ``labs``: the two development labs without a label, with and without a profile
- ``few``: the same with ten labelled cells a class, mean of ten draws
- ``alarm``: archives of 100 pictures, home (mixed, and of one cell type) against elsewhere
- ``strangers``: pictures that are no cells against home cells, red against white cells elsewhere
- ``simulated``: simulated labs, by which ideas are ranked
- ``unknown``: each cell type left out of a training in turn (see ``unknown_types.py``)
- ``throughput``: scoring with a profile against scoring without (see ``site_throughput.py``)
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import beta
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from benchmarks.lab_cells import Cells, read_home, read_lab, strangers
from benchmarks.simulated_labs import KINDS, NUM_LABS, Lab
from benchmarks.site_throughput import throughput
from benchmarks.unknown_types import unknown_types
from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.cells import CLASSES
from bloodcells.scoring import Scorer
from bloodcells.site_search import make_profile, outputs_of
from bloodcells.sites import SiteProfile, compare_with_home
from bloodcells.sites.sample import SAMPLE_SIZE
from bloodcells.training.adapting import fit_to_cells
from bloodcells.training.adapting_fit import Fitting
from bloodcells.training.adapting_view import SiteViews
from bloodcells.verdicts import Verdicts, judge, oddness

LABS = {"bccd": "basophil", "chula": None}
"""The development labs, and the class of each that has too few cells to be measured."""

Encoded = bytes | npt.NDArray[np.uint8]
Figures = dict[str, Any]
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is measured, on what."""

    bundle: ModelBundle
    bundle_uri: str
    scorer: Scorer
    data: Path
    split: str
    work: Path

    def verdicts(self, images: Sequence[Encoded], site: SiteProfile | None = None) -> Verdicts:
        """Judge pictures as bulk scoring does."""
        outputs = outputs_of(images, self.scorer.at(site))
        return judge(outputs, self.bundle.calibration.at(site))

    def oddness(self, images: Sequence[Encoded], site: SiteProfile | None = None) -> np.ndarray:
        """Return by what pictures are told to be none of the eight types, ``float32 (N,)``."""
        outputs = outputs_of(images, self.scorer.at(site))
        return oddness(outputs, self.bundle.calibration.at(site))[0]

    def profile(self, images: Sequence[Encoded]) -> SiteProfile:
        """Make a profile of a sample, as ``--site auto`` does."""
        rows = np.random.default_rng(SEED).permutation(len(images))[:SAMPLE_SIZE]
        return make_profile([images[row] for row in rows], self.bundle)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", default=shipped_bundle_uri())
    parser.add_argument("--split", default="val", help="of the home cells: val, or test once")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--work", type=Path, default=Path("build/sites"), help="kept weights")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/sites.json"))
    options = parser.parse_args()
    bundle = ModelBundle.load(options.bundle)
    bench = Bench(
        bundle=bundle,
        bundle_uri=options.bundle,
        scorer=Scorer(bundle),
        data=options.data,
        split=options.split,
        work=options.work,
    )
    found: Figures = {}
    digest = unmeasured_digest(bundle)
    if options.json.exists():
        before = json.loads(options.json.read_text())
        found = before if before.get("unmeasured_digest") == digest else {}
    found["unmeasured_digest"] = digest
    for name in options.only.split(","):
        found[name] = PARTS[name](bench)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def unmeasured_digest(bundle: ModelBundle) -> str:
    """Return a bundle's digest as it is without the figures that are measured here."""
    facts = {name: fact for name, fact in bundle.facts.items() if name != "measured"}
    return replace(bundle, facts=facts).digest


def home(bench: Bench) -> Figures:
    """Measure the home cells of a split, with a profile and without, and what review leaves."""
    cells = read_home(bench.data / "pbc", bench.split)
    profile = bench.profile(cells.images)
    found: Figures = {"split": bench.split, "num_images": len(cells.images)}
    for name, site in (("none", None), ("auto", profile)):
        verdicts = bench.verdicts(cells.images, site)
        right = _classes(verdicts) == cells.labels
        found[name] = [float(right.mean()), *_exact(int(right.sum()), len(right))]
        print(f"home {bench.split}, --site {name}: accuracy {_text(found[name])}")
    kept = ~verdicts.needs_review
    wrong = int((~right & kept).sum())
    upper = float(beta.ppf(0.95, wrong + 1, max(1, kept.sum() - wrong)))
    found["review"] = {"coverage": float(kept.mean()), "wrong": wrong, "upper_bound": upper}
    found["out_of_domain"] = float(verdicts.out_of_domain.mean())
    print(
        f"home {bench.split}: {kept.mean():.1%} not sent to review, {wrong} of them wrong, at most "
        f"{upper:.2%} with 95 % confidence; {verdicts.out_of_domain.mean():.1%} out of domain"
    )
    return found


def labs(bench: Bench) -> Figures:
    """Measure the development labs without any label."""
    found: Figures = {}
    for name, left_out in LABS.items():
        cells = _lab(bench, name, left_out)
        profile = bench.profile(cells.images)
        found[name] = {"profile": profile.to_dict()}
        for way, site in (("none", None), ("auto", profile)):
            verdicts = bench.verdicts(cells.images, site)
            predicted = _classes(verdicts)
            figure = _balanced(cells.labels, predicted)
            kept = ~verdicts.needs_review
            right = predicted == cells.labels
            found[name][way] = {
                "balanced_accuracy": figure,
                "accuracy": float(right.mean()),
                "mean_confidence": float(verdicts.confidence.mean()),
                "coverage": float(kept.mean()),
                "accuracy_of_kept": float(right[kept].mean()) if kept.any() else None,
                "out_of_domain": float(verdicts.out_of_domain.mean()),
            }
            print(
                f"{name}, no labels, --site {way}: balanced accuracy {_text(figure)}; confidence "
                f"{verdicts.confidence.mean():.2f} where {right.mean():.2f} are right; "
                f"{kept.mean():.0%} not sent to review"
            )
        print(f"{name}: crop x {profile.crop}, density x {profile.density}; {profile.sentence}")
    return found


def few(bench: Bench, *, draws: int = 10, a_class: int = 10) -> Figures:
    """Adapt to ten labelled cells a class, test on the cells of all smears not learned from.

    Those may lack a class; the balanced accuracy is then over the others. BCCD's smears are not
    known, so each of its cells counts as one. The network is the one that ``jobs.adapt`` ships; its
    cross-validation, which takes five times as long and decides nothing here, is left out.
    """
    found: Figures = {}
    for name, left_out in LABS.items():
        cells = _lab(bench, name, left_out)
        groups = np.array([_smear(each) for each in cells.names])
        drawn: list[Figures] = []
        for draw in range(draws):
            chosen = _draw(cells.labels, groups, a_class, np.random.default_rng(draw))
            test = cells.take(np.flatnonzero(~np.isin(groups, groups[chosen])))
            begun = time.monotonic()
            train = cells.take(chosen)
            views = SiteViews(bench.bundle, train.images, train.labels, Fitting.hold)
            adapted, _ = fit_to_cells(bench.bundle, views, np.arange(len(chosen)), Fitting())
            took = time.monotonic() - begun
            there = replace(bench, bundle=adapted, scorer=Scorer(adapted))
            before, after = (
                _balanced(test.labels, _classes(each.verdicts(test.images)))[0]
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


def alarm(bench: Bench, *, archives: int = 100, size: int = 100) -> Figures:
    """Compare archives of 100 pictures with home."""
    rng = np.random.default_rng(SEED)
    cells = read_home(bench.data / "pbc", "val", "test")
    distances: dict[str, list[float]] = {"home, mixed": [], "home, one type": []}
    for number in range(archives):
        everything = np.arange(len(cells.labels))
        one = np.flatnonzero(cells.labels == number % len(CLASSES))
        for kind, rows in (("home, mixed", everything), ("home, one type", one)):
            distances[kind].append(_distance(bench, cells, rng.choice(rows, size)))
    for name in LABS:
        lab = read_lab(bench.data / "other_labs" / f"{name}.tar")
        everything = np.arange(len(lab.labels))
        distances[name] = [
            _distance(bench, lab, rng.choice(everything, size, replace=False))
            for _ in range(archives // 2)
        ]
    at_home = distances["home, mixed"] + distances["home, one type"]
    elsewhere = [value for name in LABS for value in distances[name]]
    limit = bench.bundle.home.threshold if bench.bundle.home else float("nan")
    figures = {
        "auc": float(roc_auc_score([0] * len(at_home) + [1] * len(elsewhere), at_home + elsewhere)),
        "false_alarms": float(np.mean(np.array(at_home) > limit)),
        "missed": float(np.mean(np.array(elsewhere) <= limit)),
        "threshold": limit,
        "highest_at_home": max(at_home),
        "lowest_elsewhere": min(elsewhere),
    }
    print("store alarm: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    return figures


def strange(bench: Bench) -> Figures:
    """Tell pictures that are no cells from home cells, and red from white cells elsewhere."""
    cells = read_home(bench.data / "pbc", bench.split)
    others = strangers(cells, bench.data / "fields" / "bccd_fields.tar")
    site = bench.profile(others["field_white_cells"])
    at_home = bench.oddness(cells.images)
    found: Figures = {}
    for kind, pictures in others.items():
        if kind == "field_white_cells":
            continue
        elsewhere = kind == "field_red_cells"
        inside = bench.oddness(others["field_white_cells"], site) if elsewhere else at_home
        outside = bench.oddness(pictures, site if elsewhere else None)
        found[kind] = float(
            roc_auc_score(np.repeat([0, 1], [len(inside), len(outside)]), [*inside, *outside])
        )
        print(f"out of domain, {kind} ({len(pictures)}): AUC {found[kind]:.4f}")
    found["mean"] = float(np.mean(list(found.values())))
    print(f"out of domain: mean AUC {found['mean']:.4f}")
    return found


def simulated(bench: Bench, *, a_class: int = 20) -> Figures:
    """Score simulated labs, with a profile and without; profile and test cells are not the same."""
    cells = read_home(bench.data / "pbc", "val")
    rng = np.random.default_rng(SEED)
    rows = np.concatenate(
        [
            rng.permutation(np.flatnonzero(cells.labels == k))[: 2 * a_class]
            for k in range(len(CLASSES))
        ]
    )
    chosen = cells.take(rng.permutation(rows))
    half = np.arange(len(rows)) % 2 == 0
    found: list[Figures] = []
    for kind, seed in itertools.product(KINDS, range(NUM_LABS)):
        lab = Lab.draw(seed, kind)
        pictures = [lab.picture(image, number) for number, image in enumerate(chosen.images)]
        profile = bench.profile([p for p, first in zip(pictures, half, strict=True) if first])
        tested = [p for p, first in zip(pictures, half, strict=True) if not first]
        labels = chosen.labels[~half]
        figures: Figures = {"kind": kind, "crop": profile.crop, "density": profile.density}
        for name, site in (("none", None), ("auto", profile)):
            verdicts = bench.verdicts(tested, site)
            figures[name] = float(balanced_accuracy_score(labels, _classes(verdicts)))
            figures[f"confidence_{name}"] = float(verdicts.confidence.mean())
        found.append(figures)
        print(
            f"simulated lab {seed}, {kind}: none {figures['none']:.3f}, auto "
            f"{figures['auto']:.3f} (confidence {figures['confidence_auto']:.3f}), crop x "
            f"{profile.crop}, density x {profile.density}, {profile.standing}"
        )
    means = {
        kind: {
            name: float(np.mean([lab[name] for lab in found if lab["kind"] == kind]))
            for name in ("none", "auto", "confidence_auto")
        }
        for kind in KINDS
    }
    for kind, figures in means.items():
        text = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        print(f"simulated labs, {kind}, means: {text}")
    return {"labs": found, "means": means}


def unknown(bench: Bench) -> Figures:
    """Leave each cell type out of a training in turn."""
    return unknown_types(bench.data / "pbc", bench.work)


def speed(bench: Bench) -> Figures:
    """Score with a profile and without."""
    return throughput(bench.data / "pbc", bench.bundle_uri)


PARTS: dict[str, Callable[[Bench], Figures]] = {
    "home": home,
    "labs": labs,
    "few": few,
    "alarm": alarm,
    "strangers": strange,
    "simulated": simulated,
    "unknown": unknown,
    "throughput": speed,
}


def _lab(bench: Bench, name: str, left_out: str | None) -> Cells:
    cells = read_lab(bench.data / "other_labs" / f"{name}.tar")
    if left_out is None:
        return cells
    return cells.take(np.flatnonzero(cells.labels != CLASSES.index(left_out)))


def _classes(verdicts: Verdicts) -> npt.NDArray[np.int64]:
    return np.array([CLASSES.index(name) for name in verdicts.predicted_class], np.int64)


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


def _distance(bench: Bench, cells: Cells, rows: npt.NDArray[np.int64]) -> float:
    images, bundle = [cells.images[row] for row in rows], bench.bundle
    distance = compare_with_home(images, bundle.home, bundle.digest).distance
    assert distance is not None
    return distance


def _balanced(labels: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]) -> list[float]:
    """Return balanced accuracy over the classes there are, with a bootstrap interval by cell."""
    rng = np.random.default_rng(SEED)
    right = predicted == labels
    classes = np.unique(labels)
    value = float(np.mean([right[labels == k].mean() for k in classes]))
    drawn = [
        np.mean([rng.choice(right[labels == k], (labels == k).sum()).mean() for k in classes])
        for _ in range(1000)
    ]
    return [value, *(float(v) for v in np.quantile(drawn, [0.025, 0.975]))]


def _exact(count: int, total: int) -> tuple[float, float]:
    """Return the exact 95 % interval of a share."""
    low = beta.ppf(0.025, count, total - count + 1) if count else 0.0
    high = beta.ppf(0.975, count + 1, total - count) if count < total else 1.0
    return float(low), float(high)


def _text(figure: Sequence[float]) -> str:
    return f"{figure[0]:.4f} ({figure[1]:.4f}–{figure[2]:.4f})"


if __name__ == "__main__":
    main()
