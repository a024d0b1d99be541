"""Jobs submitted to real Ray nodes on this machine, as an operator submits them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.local import LocalCluster

ROOT = Path(__file__).parents[1]
JOB_S = 420


@dataclass
class Submission:
    """``python -m cluster.submit`` as a process.

    Attributes:
        id: the job's id.
        process: the command; it ends with the job.
    """

    id: str
    process: subprocess.Popen[str]

    def finish(self) -> str:
        """Wait for the job to end well; returns what was printed."""
        code, output = self.ended()
        assert code == 0, output
        return output

    def ended(self) -> tuple[int, str]:
        """Wait for the job to end; returns the exit code and what was printed."""
        output, _ = self.process.communicate(timeout=JOB_S)
        return self.process.returncode, output


def submit(cluster: LocalCluster, job_id: str, command: Sequence[str]) -> Submission:
    """Submit a job of this checkout."""
    line = [sys.executable, "-m", "cluster.submit", "--id", job_id]
    line += ["--address", cluster.dashboard, "--", *command]
    process = subprocess.Popen(
        line,
        cwd=ROOT,
        env=environment(cluster),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Submission(job_id, process)


def environment(cluster: LocalCluster) -> dict[str, str]:
    """Return the environment of an operator's shell."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return kept | cluster.environment


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.3)


def num_published(run: Path) -> int:
    """Return how many shards a run in a local folder has published."""
    return len(list((run / "scores").glob("part-*.parquet")))


def scores(run: Path) -> pa.Table:
    """Return all rows of a run in a local folder, in the order of their images."""
    tables = [pq.read_table(part) for part in sorted((run / "scores").glob("*.parquet"))]
    return pa.concat_tables(tables).sort_by("image_uri")
