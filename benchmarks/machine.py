"""What a measurement was taken on, and what every measured process sees of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil


def environment() -> dict[str, str]:
    """Return the environment of every contender: no GPU, no running cluster, no telemetry."""
    inherited = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return inherited | {
        "CUDA_VISIBLE_DEVICES": "",
        "RAY_USAGE_STATS_ENABLED": "0",
        "DO_NOT_TRACK": "true",
    }


def facts() -> dict[str, Any]:
    """Return what a reader must know of this machine, as JSON has it."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "load_now": os.getloadavg(),
    }


def versions(packages: Sequence[str]) -> Mapping[str, str]:
    """Return the versions of Python and of some packages, in lower case."""
    installed = {item.metadata["Name"].lower(): item.version for item in metadata.distributions()}
    named = {name: installed.get(name, "not installed") for name in packages}
    return {"python": platform.python_version(), **named}


def cpu_name() -> str:
    """Return the processor's name as its maker has it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
