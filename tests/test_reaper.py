"""What a job started ends with it, and not before."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest

DRIVER = """
import time
from bloodcells.pipeline.cluster import start_ray
start_ray(num_cpus=1)
print("up", flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ray_lives_as_long_as_its_driver_and_no_longer(number: signal.Signals) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert driver.stdout is not None
    assert driver.stdout.readline().strip() == "up"
    time.sleep(8)
    family = psutil.Process(driver.pid).children(recursive=True)
    names = " ".join(process.name() for process in family)
    assert "raylet" in names
    assert "RuntimeEnvAge" in names
    driver.send_signal(number)
    driver.wait(timeout=30)
    _, alive = psutil.wait_procs(family, timeout=25)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
