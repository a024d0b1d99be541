"""How often the intervals of a differential hold the truth: corrected, and as counted.

    python -m benchmarks.differential --run RUN --labels labels.csv --split val --json coverage.json
    python -m benchmarks.differential

Slides of known composition are drawn again and again, for each of the four mixes of
``bloodcells.synthetic``, and their intervals are held against two truths: the mix that a slide was
drawn from, and the slide's own composition. With ``--run``, a scored run of labelled cells, slides
are drawn from these cells, in two trials:

*same cells* corrects by the bundle's confusion: with the cells that the bundle was validated on,
slides and confusion are of one piece. *other half* corrects by the confusion of one half of the
cells and draws from the other, split anew each time: what a bundle meets after it has shipped.

Without ``--run`` the classifier is simulated, with assumed error rates: *known rates* draws a
validation set anew each time and slides from the assumed rates, *another set* draws the slides'
cells from a set of their own as well.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import beta

from bloodcells import storage
from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.cells import CLASSES, WHITE_CELLS
from bloodcells.differential import differential, per_hundred_white
from bloodcells.errors import BloodcellsError, RunError
from bloodcells.synthetic import DIFFERENTIALS

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
Trial = Callable[[np.random.Generator], tuple[IntArray, FloatArray]]
"""Draws a confusion to correct by ``(8, 8)``, and the rates ``(8, 8)`` at which cells of a class
(row) are called another in the slides to come; both may differ at each call."""

WHITE: Final = np.array([name in WHITE_CELLS for name in CLASSES])
TARGET: Final = 0.93
SLIDES_A_DRAW: Final = 5
ROUNDING: Final = 1e-9

VALIDATION: Final = np.array([51, 131, 65, 122, 51, 60, 140, 99])
"""Images a class in the ``val`` rows of PBC."""

ASSUMED_ERRORS: Final = {
    ("basophil", "immature_granulocyte"): 0.015,
    ("eosinophil", "neutrophil"): 0.003,
    ("erythroblast", "immature_granulocyte"): 0.005,
    ("erythroblast", "lymphocyte"): 0.008,
    ("immature_granulocyte", "monocyte"): 0.015,
    ("immature_granulocyte", "neutrophil"): 0.015,
    ("lymphocyte", "erythroblast"): 0.008,
    ("monocyte", "immature_granulocyte"): 0.02,
    ("monocyte", "lymphocyte"): 0.005,
    ("neutrophil", "eosinophil"): 0.002,
    ("neutrophil", "immature_granulocyte"): 0.01,
}
"""Rates of (true, predicted), in the manner of classifiers that are right on 98 % of PBC; all other
errors 0.001. Assumed, not measured."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Shares of slides whose interval holds the truth, and mean widths; all ``(8,)`` by class.

    Attributes:
        corrected: of the estimates' intervals, for the mix that slides were drawn from.
        corrected_own: of the same, for each slide's own composition.
        raw: of Clopper-Pearson intervals around the counts as they are, for the mix.
        width: of the estimates' intervals, per 100 white cells.
        width_exact: of Clopper-Pearson intervals around the true cells: what a faultless
            classifier would leave open.
    """

    corrected: FloatArray
    corrected_own: FloatArray
    raw: FloatArray
    width: FloatArray
    width_exact: FloatArray


def measure(
    trial: Trial, mix: FloatArray, num_cells: int, num_slides: int, rng: np.random.Generator
) -> Coverage:
    """Draw slides from a mix and see which intervals hold.

    Args:
        trial: draws the classifier; asked anew for every few slides.
        mix: relative frequency of each class, ``(8,)``.
        num_cells: cells a slide, of all classes.
        num_slides: how many slides.
        rng: source of chance.
    """
    truth = per_hundred_white(mix[np.newaxis])
    results = []
    for _ in range(-(-num_slides // SLIDES_A_DRAW)):
        confusion, rates = trial(rng)
        cells = rng.multinomial(num_cells, mix / mix.sum(), size=SLIDES_A_DRAW)
        called = rng.multinomial(cells, rates).sum(axis=1)
        found, own = differential(called, confusion), per_hundred_white(cells)
        raw_low, raw_high = exact_interval(called)
        true_low, true_high = exact_interval(cells)
        results.append(
            [
                _holds(found.low, truth, found.high),
                _holds(found.low, own, found.high),
                _holds(raw_low, truth, raw_high),
                found.high - found.low,
                true_high - true_low,
            ]
        )
    means = np.concatenate(results, axis=1)[:, :num_slides].mean(axis=1)
    names = ("corrected", "corrected_own", "raw", "width", "width_exact")
    return Coverage(**dict(zip(names, means, strict=True)))


def exact_interval(counts: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return Clopper-Pearson intervals of ``counts (S, 8)``, per 100 white cells.

    Erythroblasts and platelets are counted among themselves and the white cells.
    """
    white = counts[:, WHITE].sum(axis=1, keepdims=True)
    total = np.where(WHITE, white, white + counts)
    low = np.where(counts > 0, beta.ppf(0.025, np.maximum(counts, 1), total - counts + 1), 0)
    high = np.where(counts < total, beta.ppf(0.975, counts + 1, np.maximum(total - counts, 1)), 1)
    low, high = (np.where(WHITE, share, share / (1 - share)) for share in (low, high))
    return 100 * low, 100 * high


def trials_of_cells(cells: IntArray, confusion: IntArray) -> dict[str, Trial]:
    """Return the trials with labelled cells, ``(8, 8)``, and the bundle's confusion."""

    def same_cells(rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
        return confusion, _rates(cells)

    def other_half(rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
        half = np.array(
            [rng.multivariate_hypergeometric(row, (row.sum() + 1) // 2) for row in cells]
        )
        return half, _rates(cells - half)

    return {"same cells": same_cells, "other half": other_half}


def simulated_trials() -> dict[str, Trial]:
    """Return the trials with ``ASSUMED_ERRORS``."""
    rates = np.full((len(CLASSES), len(CLASSES)), 0.001)
    for (true, predicted), rate in ASSUMED_ERRORS.items():
        rates[CLASSES.index(true), CLASSES.index(predicted)] = rate
    np.fill_diagonal(rates, 0)
    np.fill_diagonal(rates, 1 - rates.sum(axis=1))

    def known_rates(rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
        return rng.multinomial(VALIDATION, rates), rates

    def another_set(rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
        return rng.multinomial(VALIDATION, rates), _rates(rng.multinomial(VALIDATION, rates))

    return {"known rates": known_rates, "another set": another_set}


def labelled_cells(run_uri: str, labels: str | None, split: str) -> IntArray:
    """Count a run's labelled cells, ``(8, 8)``, rows label, columns predicted class.

    Args:
        run_uri: the run folder.
        labels: a CSV file with columns ``shard``, ``member`` and ``split``; ``None`` for all cells.
        split: the rows of it that are counted.

    Raises:
        RunError: a class has fewer than two cells, so that slides cannot be drawn.
        StorageError: the run cannot be read.
    """
    chosen: set[tuple[str, str]] | None = None
    if labels is not None:
        with Path(labels).open(newline="") as file:
            rows = csv.DictReader(file)
            chosen = {(row["shard"], row["member"]) for row in rows if row["split"] == split}
    cells = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    for entry in storage.listdir(storage.join(run_uri, "scores")):
        part = pq.read_table(
            pa.BufferReader(storage.read(entry.uri)),
            columns=["image_uri", "label", "predicted_class", "out_of_domain"],
        )
        for row in part.to_pylist():
            archive, _, member = row["image_uri"].partition("#")
            known = row["label"] is not None and not row["out_of_domain"]
            if known and (chosen is None or (storage.name_of(archive), member) in chosen):
                cells[CLASSES.index(row["label"]), CLASSES.index(row["predicted_class"])] += 1
    if (cells.sum(axis=1) < 2).any():
        few = [name for name, num in zip(CLASSES, cells.sum(axis=1), strict=True) if num < 2]
        raise RunError(
            f"{run_uri} has fewer than two labelled cells of {', '.join(few)}; score a store with"
            " cells of every class in class-named folders, and check --labels and --split"
        )
    return cells


def main(argv: Sequence[str] | None = None) -> int:
    """Measure from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", help="run folder of labelled cells; without it, simulated")
    parser.add_argument("--bundle", help="the bundle that scored it (default: the shipped one)")
    parser.add_argument("--labels", help="CSV with shard, member, split (default: all cells)")
    parser.add_argument("--split", default="val", help="rows of --labels (default: val)")
    parser.add_argument("--slides", type=int, default=500, help="slides a mix (default: 500)")
    parser.add_argument("--cells", type=int, nargs="+", default=[100, 200], help="cells a slide")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="where to write the figures besides")
    arguments = parser.parse_args(argv)
    try:
        trials = _trials(arguments)
    except BloodcellsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    figures: list[dict[str, Any]] = []
    for name, trial in trials.items():
        for num_cells in arguments.cells:
            for mix_name, differential_of in DIFFERENTIALS.items():
                mix = np.array([differential_of.get(cell, 0.0) for cell in CLASSES])
                rng = np.random.default_rng([arguments.seed, num_cells])
                coverage = measure(trial, mix, num_cells, arguments.slides, rng)
                figures.append(
                    {"trial": name, "num_cells": num_cells, "mix": mix_name}
                    | {key: values.tolist() for key, values in vars(coverage).items()}
                )
                _print(figures[-1], first=len(figures) == 1)
    worst = min(min(row["corrected"] + row["corrected_own"]) for row in figures)
    print(f"worst corrected coverage {worst:.1%}, of a class in a row; the target is {TARGET:.0%}")
    if arguments.json:
        content = {
            "slides": arguments.slides,
            "seed": arguments.seed,
            "run": storage.name_of(arguments.run) if arguments.run else None,
            "split": arguments.split if arguments.labels else None,
            "classes": CLASSES,
            "worst": worst,
            "figures": figures,
        }
        Path(arguments.json).write_text(json.dumps(content, indent=1) + "\n")
    return 0


def _trials(arguments: argparse.Namespace) -> dict[str, Trial]:
    if arguments.run is None:
        return simulated_trials()
    run_uri = storage.normalise(arguments.run)
    bundle = ModelBundle.load(arguments.bundle or shipped_bundle_uri())
    cells = labelled_cells(run_uri, arguments.labels, arguments.split)
    return trials_of_cells(cells, bundle.calibration.confusion)


def _rates(cells: IntArray) -> FloatArray:
    rates: FloatArray = cells / cells.sum(axis=1, keepdims=True)
    return rates


def _holds(low: FloatArray, truth: FloatArray, high: FloatArray) -> npt.NDArray[np.bool_]:
    return (low <= truth + ROUNDING) & (truth <= high + ROUNDING)


def _print(row: dict[str, Any], *, first: bool) -> None:
    """Print one row of figures: a line for each kind of coverage, and the widths."""
    if first:
        print("per cent of slides whose 95 % interval holds the truth; widths per 100 white cells")
        print(" " * 24 + "".join(f"{name[:9]:>10}" for name in CLASSES) + "     worst")
    print(f"{row['trial']}, {row['num_cells']} cells, {row['mix']}")
    for key, title in (
        ("corrected", "corrected"),
        ("corrected_own", "corrected, own cells"),
        ("raw", "as counted"),
    ):
        values = "".join(f"{100 * value:>10.1f}" for value in row[key])
        mark = "" if key == "raw" or min(row[key]) >= TARGET else " *"
        print(f"  {title:<22}{values}{100 * min(row[key]):>10.1f}{mark}")
    for key, title in (("width", "width"), ("width_exact", "width, no errors")):
        print(f"  {title:<22}" + "".join(f"{value:>10.2f}" for value in row[key]), flush=True)


if __name__ == "__main__":
    sys.exit(main())
