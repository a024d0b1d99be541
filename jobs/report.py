"""Write a run's HTML report anew: ``python -m jobs.report --run RUN``.

Exit codes: 0 the report is written (an incomplete run's too), 1 it could not be, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from bloodcells.errors import BloodcellsError
from bloodcells.report import write_report


@dataclass(frozen=True, kw_only=True)
class ReportJob:
    """The flags of this job.

    Attributes:
        run: URI of the run folder, local or ``s3://``.
    """

    run: str


def parse(arguments: Sequence[str] | None = None) -> ReportJob:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.report", description="Write RUN/report.html anew."
    )
    parser.add_argument(
        "--run", required=True, metavar="RUN", help="the run folder: what jobs.score had as --out"
    )
    return ReportJob(**vars(parser.parse_args(arguments)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    job = parse(arguments)
    try:
        uri = write_report(job.run)
    except BloodcellsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"report: {uri}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
