"""Write a run's HTML report anew: ``python -m jobs.report --run RUN``.

An incomplete run has a report too, which says at its top what is missing. Exit codes: 0 written,
1 the run folder cannot be read or written, 2 wrong usage.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from bloodcells.report import write_report
from jobs.flags import flag, parse, run_job


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write RUN/report.html anew.

    Attributes:
        run: URI of the run folder.
    """

    run: str = flag("the run folder, local or s3://: what jobs.score was given as --out")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    config = parse(ReportConfig, "report", argv)
    return run_job(lambda: print(f"report: {write_report(config.run)}"))


if __name__ == "__main__":
    sys.exit(main())
