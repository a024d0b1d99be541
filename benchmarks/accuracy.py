"""How right the shipped bundle is on labelled cells that it was not trained on.

``python -m benchmarks.accuracy --store FOLDER_OF_TARS --splits labels.csv --split test`` scores the
rows of one split with ``jobs.score`` and prints accuracy and macro-F1 with their intervals,
calibration before and after temperature scaling, and the confusion matrix; JSON goes beside.
``test`` is read once for each bundle that ships: ``--log`` adds the reading to a list that is kept.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import tarfile
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy.special import softmax

from bloodcells.bootstrap import GroupedTally, Intervals
from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.cells import CLASSES, SHORT_NAMES
from bloodcells.evaluation import Evaluation
from bloodcells.report import gather
from jobs.score import ScoreConfig, score


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", type=Path, required=True, help="folder of tar archives")
    parser.add_argument("--splits", type=Path, required=True, help="CSV: shard, member, split")
    parser.add_argument("--split", default="test")
    parser.add_argument("--bundle", help="by default the one that ships")
    parser.add_argument("--log", type=Path, help="Markdown file to add this reading to")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/accuracy.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive, run = Path(folder) / f"{options.split}.tar", Path(folder) / "run"
        _extract(options.store, options.splits, options.split, archive)
        done = score(ScoreConfig(store=(str(archive),), out=str(run), bundle=options.bundle))
        found = gather(str(run)).evaluation
        if found is None:
            raise SystemExit(f"{options.splits}: the rows of split {options.split} have no labels")
        bundle = ModelBundle.load(options.bundle or shipped_bundle_uri())
        temperature = bundle.calibration.temperature
        after, labels = _probabilities(run)
        before = softmax(np.log(np.maximum(after, 1e-30)) * temperature, axis=1)
        figures = {"before": _figures(before, labels), "after": _figures(after, labels)}
    print(f"{options.split}: {found}")
    for when, (evaluation, intervals) in figures.items():
        print(f"{when} scaling: {_line(evaluation, intervals)}")
    short = [SHORT_NAMES[name] for name in CLASSES]
    print("true \\ predicted  " + "  ".join(f"{name:>4}" for name in short))
    for name, row in zip(short, found.confusion, strict=True):
        print(f"{name:>16}  " + "  ".join(f"{count:>4}" for count in row))
    value, low, high = found.accuracy
    if options.log:
        with options.log.open("a") as log:
            log.write(
                f"| {datetime.now(UTC):%Y-%m-%d} | `{done.bundle['digest'][7:19]}` | "
                f"{options.split} | {found.num_labelled} | {value:.4f} ({low:.4f}–{high:.4f}) | "
                f"{found.macro_f1:.4f} |\n"
            )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(
        json.dumps(
            {
                "split": options.split,
                "bundle_digest": done.bundle["digest"],
                "num_images": found.num_labelled,
                "accuracy": {"value": value, "low": low, "high": high},
                "macro_f1": found.macro_f1,
                "calibration": {
                    when: _calibration(evaluation, intervals)
                    for when, (evaluation, intervals) in figures.items()
                },
                "confusion": found.confusion.tolist(),
            },
            indent=2,
        )
        + "\n"
    )


def _probabilities(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return calibrated probabilities ``float64 (N, 8)`` and labels ``int64 (N,)`` of a run."""
    columns = [f"prob_{name}" for name in CLASSES]
    rows = pq.read_table(run / "scores", columns=[*columns, "label"])
    probabilities = np.stack([rows[name].to_numpy() for name in columns], axis=1)
    labels = np.array([CLASSES.index(label) for label in rows["label"].to_pylist()])
    return probabilities.astype(np.float64), labels


def _figures(probabilities: np.ndarray, labels: np.ndarray) -> tuple[Evaluation, Intervals]:
    tally = GroupedTally()
    tally.add(
        labels,
        probabilities,
        probabilities.argmax(1),
        probabilities.max(1),
        [str(i) for i in range(len(labels))],
    )
    evaluation = tally.evaluation()
    assert evaluation is not None
    return evaluation, tally.intervals(by="image")


def _calibration(evaluation: Evaluation, intervals: Intervals) -> dict[str, list[float]]:
    names = ("macro_f1", "ece", "log_loss", "brier")
    return {name: [float(v) for v in intervals.figures[name]] for name in names}


def _line(evaluation: Evaluation, intervals: Intervals) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.4f} ({low:.4f}–{high:.4f})"
        for name, (value, low, high) in _calibration(evaluation, intervals).items()
    )


def _extract(store: Path, splits: Path, split: str, out: Path) -> None:
    """Copy the members of one split into one archive, in the table's order."""
    with splits.open(newline="") as table:
        wanted = [row for row in csv.DictReader(table) if row["split"] == split]
    with tarfile.open(out, "w") as archive:
        for shard in sorted({row["shard"] for row in wanted}):
            with tarfile.open(store / shard) as source:
                for row in (row for row in wanted if row["shard"] == shard):
                    member = source.extractfile(row["member"])
                    assert member is not None
                    data = member.read()
                    entry = tarfile.TarInfo(row["member"])
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))


if __name__ == "__main__":
    main()
