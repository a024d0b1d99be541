"""What a job started ends with it, and not before."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil

DRIVER = """
import time
from bloodcells.pipeline.cluster import start_ray
start_ray(num_cpus=1)
print("up", flush=True)
time.sleep(300)
"""


AGENTS = ("RuntimeEnvAge", "DashboardAgen")
"""What a raylet starts beside itself, by the names that its agents give themselves."""


def start_driver() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def family_of(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """Wait until a driver has its Ray with all agents, and return their processes."""
    assert driver.stdout is not None
    assert driver.stdout.readline().strip() == "up"
    deadline = time.monotonic() + 60
    while True:
        family = psutil.Process(driver.pid).children(recursive=True)
        names = " ".join(process.name() for process in family)
        if all(agent in names for agent in AGENTS):
            assert "raylet" in names
            return family
        assert time.monotonic() < deadline, names
        time.sleep(0.2)


def test_ray_lives_as_long_as_its_driver_and_no_longer() -> None:
    drivers = {number: start_driver() for number in (signal.SIGKILL, signal.SIGTERM)}
    families = [family_of(driver) for driver in drivers.values()]
    for number, driver in drivers.items():
        driver.send_signal(number)
    for driver in drivers.values():
        driver.wait(timeout=30)
    _, alive = psutil.wait_procs([p for family in families for p in family], timeout=25)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
