"""The files of ``cluster/``, taken apart: documents, pods, containers, and the commands in them."""

from __future__ import annotations

import importlib
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from jobs.compare import CompareConfig
from jobs.evaluate import EvaluateConfig
from jobs.flags import parse
from jobs.prepare import PrepareConfig
from jobs.report import ReportConfig
from jobs.score import ScoreConfig
from jobs.train import TrainConfig
from jobs.tune import TuneConfig

ROOT: Final = Path(__file__).parents[1]
CLUSTER: Final = ROOT / "cluster"
MANIFESTS: Final = sorted((CLUSTER / "kuberay").glob("*.yaml"))
JOBS: Final[dict[str, type]] = {
    "compare": CompareConfig,
    "evaluate": EvaluateConfig,
    "prepare": PrepareConfig,
    "report": ReportConfig,
    "score": ScoreConfig,
    "train": TrainConfig,
    "tune": TuneConfig,
}


def documents(path: Path) -> list[dict[str, Any]]:
    """Return the resources of a manifest."""
    return list(yaml.safe_load_all(path.read_text()))


def everything(node: Any, key: str) -> Iterator[Any]:
    """Yield what stands under ``key``, wherever in a document it is."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from everything(value, key)
    elif isinstance(node, list):
        for item in node:
            yield from everything(item, key)


def pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the templates of pods in a resource: those that hold containers."""
    found = []
    if "containers" in document.get("spec", {}):
        found.append(document)
    for value in document.values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                found += pods(item)
    return found


def all_pods() -> list[dict[str, Any]]:
    """Return the templates of pods of all manifests."""
    return [pod for path in MANIFESTS for document in documents(path) for pod in pods(document)]


def all_containers() -> list[dict[str, Any]]:
    """Return the containers of all manifests."""
    return [container for pod in all_pods() for container in pod["spec"]["containers"]]


def linter(name: str) -> str:
    """Return where a linter of the dev extra is; the test is skipped where it is missing."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is missing; install the dev extra: pip install -e '.[dev]'")
    return found


def require_understood(command: str) -> None:
    """Try a command line: each module is there, and each flag and value is understood.

    Args:
        command: ``python -m …``, perhaps with another one behind ``--``.
    """
    words = shlex.split(command, comments=False)
    assert words[:2] == ["python", "-m"], f"{command} is no Python module"
    module, flags = words[2], words[3:]
    if module.startswith("jobs."):
        job = module.removeprefix("jobs.")
        if flags != ["--help"]:
            parse(JOBS[job], job, flags)
        return
    own, _, rest = " ".join(map(shlex.quote, flags)).partition(" -- ")
    behind = ["--", *shlex.split(rest)] if rest else []
    importlib.import_module(module)._flags([*shlex.split(own), *behind])
    if rest:
        require_understood(rest)
