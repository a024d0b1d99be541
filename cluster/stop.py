"""``python -m cluster.stop``: ask every job of a cluster to stop, and wait until it has.

What runs before a head goes: Kubernetes calls it when it takes the pod, an operator before
``ray down``. A job that stops so leaves its folder free and says how to go on; one that is killed
leaves a lease that the next has to wait for. Knows nothing of what the jobs do.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Final

from ray.job_submission import JobDetails, JobSubmissionClient

from bloodcells.errors import BloodcellsError
from cluster.dashboard import asking, connect

ADDRESS: Final = "http://127.0.0.1:8265"
LOOK_EVERY_S: Final = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Stop the jobs from the command line; returns 0 where all have stopped, 1 where not."""
    flags = _flags(argv)
    try:
        left = stop_jobs(flags.address, seconds=flags.seconds)
    except BloodcellsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name in left:
        print(f"{name} had not stopped after {flags.seconds:g} s", file=sys.stderr)
    return 1 if left else 0


def stop_jobs(address: str, *, seconds: float) -> list[str]:
    """Ask every submitted job that is not over to stop, and wait.

    Args:
        address: the dashboard's URL.
        seconds: most seconds to wait, for all jobs together.

    Returns:
        The ids of the jobs that still run.

    Raises:
        ClusterError: no dashboard at ``address`` lets this process in.
    """
    client = connect(address)
    with asking(address):
        jobs = _running(client)
        for name in jobs:
            client.stop_job(name)
        until = time.monotonic() + seconds
        while jobs and time.monotonic() < until:
            time.sleep(LOOK_EVERY_S)
            jobs = _running(client)
    return jobs


def _running(client: JobSubmissionClient) -> list[str]:
    """Return the ids of the submitted jobs that are not over; drivers of other kinds have none."""
    jobs: list[JobDetails] = client.list_jobs()
    return [job.submission_id for job in jobs if job.submission_id and not job.status.is_terminal()]


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.stop",
        description="Ask every job of a cluster to stop, and wait until it has.",
    )
    parser.add_argument("--address", default=ADDRESS, help="URL of the dashboard")
    parser.add_argument("--seconds", type=float, default=150.0, help="most seconds to wait")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
