"""How right the shipped bundle is on labelled cells that it was not trained on.

``python -m benchmarks.accuracy --store FOLDER_OF_TARS --splits labels.csv --split test`` scores the
rows of one split with ``jobs.score`` and prints accuracy with its interval, macro-F1 and the
confusion matrix; JSON goes beside.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import tarfile
import tempfile
from pathlib import Path

from bloodcells.cells import CLASSES, SHORT_NAMES
from bloodcells.report import gather
from jobs.score import ScoreConfig, score


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", type=Path, required=True, help="folder of tar archives")
    parser.add_argument("--splits", type=Path, required=True, help="CSV: shard, member, split")
    parser.add_argument("--split", default="test")
    parser.add_argument("--bundle", help="by default the one that ships")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/accuracy.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive, run = Path(folder) / f"{options.split}.tar", Path(folder) / "run"
        _extract(options.store, options.splits, options.split, archive)
        done = score(ScoreConfig(store=(str(archive),), out=str(run), bundle=options.bundle))
        found = gather(str(run)).evaluation
    if found is None:
        raise SystemExit(f"{options.splits}: the rows of split {options.split} have no labels")
    print(f"{options.split}: {found}")
    short = [SHORT_NAMES[name] for name in CLASSES]
    print("true \\ predicted  " + "  ".join(f"{name:>4}" for name in short))
    for name, row in zip(short, found.confusion, strict=True):
        print(f"{name:>16}  " + "  ".join(f"{count:>4}" for count in row))
    value, low, high = found.accuracy
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(
        json.dumps(
            {
                "split": options.split,
                "bundle_digest": done.bundle["digest"],
                "num_images": found.num_labelled,
                "accuracy": {"value": value, "low": low, "high": high},
                "macro_f1": found.macro_f1,
                "calibration_error": found.reliability.expected_error,
                "confusion": found.confusion.tolist(),
            },
            indent=2,
        )
        + "\n"
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
