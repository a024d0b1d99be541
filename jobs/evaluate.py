"""Measure a run against labels: ``python -m jobs.evaluate --run RUN --out EVALUATION``.

Writes ``evaluation.json``, ``evaluation.md`` and ``report.html``, with 95 % intervals. Exit codes:
0 written, 1 refused or failed, 2 wrong usage.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from bloodcells import storage
from bloodcells.errors import ConfigurationError
from bloodcells.labels import LABEL_COLUMNS, SPLIT_COLUMNS, read_image_table
from bloodcells.report.evaluation import JSON_NAME, headline, write_evaluation
from bloodcells.run_evaluation import RunEvaluation, evaluate_run
from jobs.flags import flag, parse, printable, run_job


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure a run against labels: accuracy, F1, log-loss, Brier score, ECE, with intervals."""

    run: str = flag("the run folder, local or s3://: what jobs.score was given as --out")
    out: str = flag("folder for evaluation.json, evaluation.md and report.html")
    labels: str | None = flag(
        "CSV or Parquet with image_uri (or shard, member) and label, instead of the run's labels",
        default=None,
    )
    splits: str | None = flag(
        "CSV or Parquet with image_uri (or shard, member) and split", default=None
    )
    split: str | None = flag("look only at images of this split", default=None)
    by: str = flag("what intervals draw anew: slide, or image", default="slide")
    incomplete: bool = flag("accept a run that is not finished", default=False)

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is read."""
        if self.by not in ("slide", "image"):
            raise ConfigurationError(f"--by {self.by}: give slide or image")
        if self.split is not None and self.splits is None:
            raise ConfigurationError(
                f"--split {self.split}: say with --splits which table the splits are in"
            )
        if self.splits is not None and self.split is None:
            raise ConfigurationError(f"--splits {self.splits}: say with --split which one to take")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    config = parse(EvaluateConfig, "evaluate", argv)
    return run_job(lambda: evaluate(config))


def evaluate(config: EvaluateConfig) -> RunEvaluation:
    """Measure a run against labels, write what was found, and print the headline.

    Raises:
        BloodcellsError: the run or a table cannot be used, or the result cannot be written.
    """
    out = storage.normalise(config.out)
    _require_free(out)
    found = evaluate_run(
        config.run,
        labels=read_image_table(config.labels, "--labels", LABEL_COLUMNS)
        if config.labels
        else None,
        splits=read_image_table(config.splits, "--splits", SPLIT_COLUMNS)
        if config.splits
        else None,
        split=config.split,
        by="image" if config.by == "image" else "slide",
        incomplete=config.incomplete,
    )
    write_evaluation(out, found)
    for line in headline(found).splitlines():
        print(printable(line))
    print(f"report: {storage.join(out, 'report.html')}")
    return found


def _require_free(out: str) -> None:
    """Refuse a folder whose report is another's: a run's, a bundle's, a dataset's.

    Raises:
        ConfigurationError: there is a ``report.html`` that no evaluation wrote.
    """
    if storage.exists(storage.join(out, JSON_NAME)):
        return
    for name in ("run.json", "bundle.json", "report.html"):
        if storage.exists(storage.join(out, name)):
            raise ConfigurationError(
                f"--out {out} holds a {name} that is no evaluation's; choose another folder"
            )


if __name__ == "__main__":
    sys.exit(main())
