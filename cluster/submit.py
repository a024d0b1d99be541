"""Submit a job to a cluster under an id of your own, any number of times, and it runs once.

    python -m cluster.submit --id score-2026-11 -- python -m jobs.score --store … --out …

Where the id runs already, this follows it. Where it is done, this says so. Where it failed, was
stopped, or was lost with its head node, it is submitted again and goes on where it stopped, as
every job does. The exit code is the job's own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import re
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

import aiohttp
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from bloodcells.errors import ClusterError, ConfigurationError
from cluster.dashboard import connect
from jobs.flags import EXIT_ERROR, EXIT_INCOMPLETE, EXIT_INTERRUPTED, run_job

RECONNECT_S: Final = 60.0
"""How long a cluster that does not answer is asked again before it counts as gone."""

PAUSE_S: Final = 2.0

SETTLE_S: Final = 30.0
"""How long the end of a job's log waits for the job's status to say so too."""

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def main(argv: Sequence[str] | None = None) -> int:
    """Submit or follow from the command line; returns the job's exit code."""
    flags = _flags(argv)
    code = 0

    def work() -> None:
        nonlocal code
        code = submit(
            flags.id, shlex.join(flags.command), flags.address, working_dir=flags.working_dir
        )

    refused = run_job(work)
    if refused == EXIT_INTERRUPTED:
        print(f"job {flags.id} goes on; end it with: ray job stop {flags.id}", file=sys.stderr)
    return refused or code


def submit(
    submission_id: str, entrypoint: str, address: str | None, *, working_dir: str | None
) -> int:
    """Submit a job unless it runs or is done, follow its log to its end, return its exit code.

    Args:
        submission_id: the id; one piece of work for ever.
        entrypoint: the command line.
        address: the cluster's dashboard, ``http://HOST:8265``; ``None`` where ``RAY_ADDRESS`` says.
        working_dir: what travels to the cluster; ``None`` where its nodes hold the project.

    Raises:
        ConfigurationError: the id belongs to another command.
        ClusterError: no cluster answers, or it turns the job away.
    """
    _quieten_ray()
    client = connect(address)
    known = _details(client, submission_id)
    if known is not None and known.entrypoint != entrypoint:
        raise ConfigurationError(
            f"--id {submission_id} belongs to another command ({known.entrypoint}); choose a new id"
        )
    if known is not None and known.status == JobStatus.SUCCEEDED:
        _say(f"{submission_id} is done already; its log: ray job logs {submission_id}")
        return 0
    if known is not None and known.status.is_terminal():
        _say(f"{submission_id} ended as {known.status.value}; it is submitted again")
        client.delete_job(submission_id)
        known = None
    if known is None:
        _begin(client, submission_id, entrypoint, working_dir)
    else:
        _say(f"{submission_id} is {known.status.value} already; this follows it")
    return _follow(client, submission_id)


def _quieten_ray() -> None:
    """Keep Ray from telling of each file that it leaves out; what matters raises."""
    for name in ("ray", "ray.dashboard.modules", "ray._private.runtime_env"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _details(client: JobSubmissionClient, submission_id: str) -> JobDetails | None:
    """Return what the cluster knows of an id, ``None`` where it knows nothing."""
    return next((j for j in client.list_jobs() if j.submission_id == submission_id), None)


def _begin(
    client: JobSubmissionClient, submission_id: str, entrypoint: str, working_dir: str | None
) -> None:
    runtime_env: dict[str, Any] = {} if working_dir is None else {"working_dir": working_dir}
    try:
        client.submit_job(
            entrypoint=entrypoint, submission_id=submission_id, runtime_env=runtime_env
        )
    except (RuntimeError, ValueError) as error:
        if _details(client, submission_id) is None:
            raise ClusterError(
                f"the cluster turned {submission_id} away: {' '.join(str(error).split())[-300:]}"
            ) from error
        _say(f"{submission_id} was submitted by somebody else meanwhile; this follows it")
        return
    _say(f"{submission_id} is submitted: {entrypoint}")


def _follow(client: JobSubmissionClient, submission_id: str) -> int:
    """Print a job's log as it grows; returns the exit code once the job has ended."""
    printed = 0
    unanswered_since: float | None = None
    while True:
        try:
            details = _details(client, submission_id)
            if details is not None:
                printed = asyncio.run(_print_log(client, submission_id, printed))
                details = _settled(client, submission_id)
            unanswered_since = None
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            unanswered_since = unanswered_since or time.monotonic()
            if time.monotonic() - unanswered_since < RECONNECT_S:
                time.sleep(PAUSE_S)
                continue
            _say(f"the cluster does not answer ({' '.join(str(error).split())[:200]})")
            details = None
        if details is None:
            _say(f"{submission_id} is lost with its cluster; run the same command again to go on")
            return EXIT_INCOMPLETE
        if details.status.is_terminal():
            return _exit_code(details)


async def _print_log(client: JobSubmissionClient, submission_id: str, printed: int) -> int:
    """Print a log from its character number ``printed`` on; returns how far it got."""
    position = 0
    async with contextlib.aclosing(client.tail_job_logs(submission_id)) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            new = chunk[max(0, printed - position) :]
            position += len(chunk)
            if new:
                sys.stdout.write(new)
                sys.stdout.flush()
    return max(position, printed)


def _settled(client: JobSubmissionClient, submission_id: str) -> JobDetails | None:
    """Wait until a job whose log has ended is known to have ended; ``None`` where it is lost."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        details = _details(client, submission_id)
        if details is None or details.status.is_terminal() or time.monotonic() > deadline:
            return details
        time.sleep(PAUSE_S)


def _exit_code(details: JobDetails) -> int:
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        _say(f"{details.submission_id} was stopped; run the same command again to go on")
        return EXIT_INTERRUPTED
    if details.driver_exit_code is None:
        _say(f"{details.submission_id} failed: {' '.join((details.message or '').split())[:300]}")
        return EXIT_ERROR
    return details.driver_exit_code


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.submit",
        usage="%(prog)s --id ID [--address URL] -- python -m jobs.…",
        description="Run a job on a cluster under an id: once, however often it is submitted.",
    )
    parser.add_argument("--id", required=True, help="name of this piece of work")
    parser.add_argument("--address", help="the dashboard, http://HOST:8265 (else RAY_ADDRESS)")
    parser.add_argument("--working-dir", default=".", help="what travels to the cluster")
    parser.add_argument(
        "--code-in-image",
        action="store_const",
        dest="working_dir",
        const=None,
        help="send nothing: the nodes' image holds the project",
    )
    parser.add_argument("command", nargs="+", help="the job's command line, after --")
    flags = parser.parse_args(argv)
    if not _ID.fullmatch(flags.id):
        parser.error(f"--id {flags.id!r}: letters, digits, '.', '_' and '-', at most 128")
    return flags


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
