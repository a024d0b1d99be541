"""``jobs.score`` with scorers that sleep a second a batch: work that takes as long everywhere."""

from __future__ import annotations

import functools
import sys

from benchmarks.sleeping import sleeping_reader, sleeping_scorer
from bloodcells.bundle_facts import shipped_bundle_uri, verified_apart
from bloodcells.pipeline.streaming import score_planned
from jobs.flags import parse, run_job
from jobs.score import ScoreConfig, score

BATCH_SECONDS = 1.0


def main() -> int:
    """Run the job from the command line; returns the exit code."""
    config = parse(ScoreConfig, "score")
    pipeline = functools.partial(
        score_planned,
        reader=sleeping_reader(0, side_px=96),
        scorer=sleeping_scorer(BATCH_SECONDS, verified_apart(shipped_bundle_uri())),
    )
    return run_job(lambda: score(config, verified=verified_apart, pipeline=pipeline))


if __name__ == "__main__":
    sys.exit(main())
