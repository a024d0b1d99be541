"""How the shipped bundle copes with other labs, and whether it knows that it is elsewhere.

``python -m benchmarks.sites --data FOLDER`` prints the whole table with 95 % intervals and
writes it as JSON. ``FOLDER`` holds ``pbc/``, ``other_labs/`` and ``fields/``. ``--only`` measures
some parts:

- ``home``: accuracy at home with ``--site auto`` and ``none`` (of ``--split``), and review
- ``labs``: the two development labs without a label, with and without a profile
- ``few``: the same with ten labelled cells a class, mean of ten draws (see ``few_labels.py``)
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
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import beta
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from benchmarks.few_labels import few
from benchmarks.lab_cells import Cells, read_home, read_lab, strangers
from benchmarks.simulated_labs import KINDS, NUM_LABS, Lab
from benchmarks.site_bench import (
    LABS,
    SEED,
    Bench,
    Figures,
    balanced,
    cells_of_lab,
    classes_of,
)
from benchmarks.site_throughput import throughput
from benchmarks.unknown_types import unknown_types
from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.cells import CLASSES
from bloodcells.scoring import Scorer
from bloodcells.sites import compare_with_home


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
        right = classes_of(verdicts) == cells.labels
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
        cells = cells_of_lab(bench, name, left_out)
        profile = bench.profile(cells.images)
        found[name] = {"profile": profile.to_dict()}
        for way, site in (("none", None), ("auto", profile)):
            verdicts = bench.verdicts(cells.images, site)
            predicted = classes_of(verdicts)
            figure = balanced(cells.labels, predicted)
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
            figures[name] = float(balanced_accuracy_score(labels, classes_of(verdicts)))
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


def _distance(bench: Bench, cells: Cells, rows: npt.NDArray[np.int64]) -> float:
    images, bundle = [cells.images[row] for row in rows], bench.bundle
    distance = compare_with_home(images, bundle.home, bundle.digest).distance
    assert distance is not None
    return distance


def _exact(count: int, total: int) -> tuple[float, float]:
    """Return the exact 95 % interval of a share."""
    low = beta.ppf(0.025, count, total - count + 1) if count else 0.0
    high = beta.ppf(0.975, count + 1, total - count) if count < total else 1.0
    return float(low), float(high)


def _text(figure: Sequence[float]) -> str:
    return f"{figure[0]:.4f} ({figure[1]:.4f}–{figure[2]:.4f})"


if __name__ == "__main__":
    main()
