"""A job that is told to end says so and exits with 130, though Ray has a handler of its own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

JOB = """
import sys, time
from bloodcells.pipeline.cluster import start_ray
from jobs.flags import run_job

def job():
    start_ray(num_cpus=1)
    print("up", flush=True)
    time.sleep(300)

sys.exit(run_job(job, goes_on=sys.argv[1] == "goes on"))
"""


@pytest.mark.parametrize(
    ("number", "way", "told"),
    [
        (signal.SIGTERM, "goes on", "the same command goes on where this one stopped"),
        (signal.SIGINT, "begins anew", "the same command begins anew"),
    ],
)
def test_the_exit_code_says_that_it_was_interrupted(
    number: signal.Signals, way: str, told: str
) -> None:
    job = subprocess.Popen(
        [sys.executable, "-c", JOB, way], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert job.stdout is not None
    assert job.stdout.readline().strip() == "up"
    job.send_signal(number)
    _, said = job.communicate(timeout=120)
    assert job.returncode == 130
    assert f"interrupted: {told}" in said
    assert "SIGTERM received" not in said  # nor a stack of Ray's
