"""What the README and the documents say can be done, can be done."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from bloodcells.synthetic import BALANCED, draw_slide, write_archive
from jobs.adapt import AdaptConfig
from jobs.compare import CompareConfig
from jobs.evaluate import EvaluateConfig
from jobs.flags import parse
from jobs.prepare import PrepareConfig, prepare
from jobs.report import ReportConfig
from jobs.score import ScoreConfig, score
from jobs.site import SiteConfig
from jobs.train import TrainConfig
from jobs.tune import TuneConfig
from tests.manifests import write_cells

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
JOBS: dict[str, type] = {
    "prepare": PrepareConfig,
    "train": TrainConfig,
    "tune": TuneConfig,
    "compare": CompareConfig,
    "score": ScoreConfig,
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
    "site": SiteConfig,
    "adapt": AdaptConfig,
}


def blocks(language: str) -> list[str]:
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found = [match for path in DOCUMENTS for match in fence.findall(path.read_text())]
    return [block for written, block in found if written == language]


def commands() -> list[str]:
    lines = "\n".join(blocks("")).splitlines()
    return [line for line in lines if "-m jobs." in line and not line.endswith("--help")]


@pytest.mark.parametrize("command", commands())
def test_every_command_is_understood(command: str) -> None:
    plain = re.sub(r"\[[^\]]*…\]", "", command).replace("[", "").replace("]", "")
    job, *arguments = shlex.split(plain.partition("-m jobs.")[2])
    parse(JOBS[job], job, arguments)


@pytest.mark.parametrize("target", re.findall(r"^make (\w+)", "\n".join(blocks("")), re.M))
def test_every_make_target_is_there(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


def test_the_links_lead_somewhere() -> None:
    for path in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if "://" not in link:
                assert (path.parent / link).exists(), f"{path.name} links to {link}"


@pytest.mark.usefixtures("ray_cluster")
def test_the_python_of_the_documents_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path / "slides", draw_slide(BALANCED, 12, seed=1), "folder")
    monkeypatch.chdir(tmp_path)
    score(ScoreConfig(store=("slides",), out="runs/first"))
    write_cells(tmp_path / "cells", 4)
    prepare(PrepareConfig(store=("cells",), out="datasets/first"))
    for block in blocks("python"):
        if "httpx" in block:  # it needs an endpoint: tests/test_serve_app.py runs it
            continue
        exec(compile(block, "document", "exec"), {})


def test_the_flags_stay_as_users_know_them() -> None:
    flags = {job: [field.name for field in fields(config)] for job, config in JOBS.items()}
    assert flags == {
        "score": [
            *("store", "out", "bundle", "site", "since", "slide_pattern", "shard_size", "scorers"),
            *("compile", "max_quarantine", "retry_quarantined", "restart"),
        ],
        "prepare": ["store", "out", "splits", "group_by", "slide_pattern", "keep"],
        "train": [
            *("out", "dataset", "store", "splits", "model", "weights", "from_scratch", "recipe"),
            *("teacher", "optimizer", "epochs", "size", "crop", "num_workers", "max_failures"),
            *("checkpoint_minutes", "seed", "folds", "elsewhere_bundle", "about_data", "restart"),
        ],
        "tune": [
            *("dataset", "out", "recipe", "model", "weights", "from_scratch", "trials", "epochs"),
            *("metric", "size", "crop", "seed", "restart"),
        ],
        "compare": [
            *("dataset", "out", "models", "elsewhere", "weights", "from_scratch", "recipe"),
            *("optimizer", "epochs", "folds", "size", "crop", "num_workers"),
        ],
        "evaluate": ["run", "out", "labels", "splits", "split", "by", "incomplete"],
        "report": ["run"],
        "site": ["store", "out", "bundle", "beside"],
        "adapt": ["out", "store", "run", "bundle", "slide_pattern", "steps", "seed"],
    }
