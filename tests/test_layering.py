"""Arrows point down only, and few rooms know Ray."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS: list[set[str]] = [
    {"cells", "errors", "allocator", "precision"},
    {
        *("records", "storage", "evaluation", "bootstrap", "differential", "corrected"),
        "false_alarms",
    },
    {"imaging", "stores", "splits", "synthetic", "quality", "duplicates"},
    {"models", "model_card", "augment", "grouping", "explain", "sites", "novelty"},
    {"bundle", "bundle_facts", "detector", "fusion", "features"},
    {
        *("publish", "merged", "runs", "lease", "slides", "isolated", "datasets", "parts"),
        *("reviews", "reviewed_slides"),
    },
    {"loading", "accounting", "merging"},
    {"verdicts", "scoring", "measuring", "site_search", "site_making"},
    {"labels", "run_labels", "run_evaluation"},
    {"report", "manifest"},
    {"pipeline", "training"},
]
"""The rooms of ``bloodcells``, ground floor first; a room may look at its own floor and below."""

MAY_IMPORT_RAY = ("bloodcells/pipeline/", "bloodcells/training/", "jobs/", "serve/", "benchmarks/")


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Return the dotted names that a module imports, ``from a import b`` as ``a`` and ``a.b``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def room(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "bloodcells" and len(parts) > 1 else None


def floor(name: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if name in rooms)


@pytest.mark.parametrize("path", modules("bloodcells"), ids=str)
def test_arrows_point_down(path: Path) -> None:
    here = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if here is None or here == "__init__":
        return
    known = set().union(*FLOORS)
    assert here in known, f"give the new room {here} a floor in this test"
    for name in imports(path):
        there = room(name)
        if there in known:
            assert floor(there) <= floor(here), f"{path.name} looks up at {name}"


@pytest.mark.parametrize("path", modules("bloodcells"), ids=str)
def test_the_library_never_calls_upstairs(path: Path) -> None:
    for name in imports(path):
        assert name.split(".")[0] not in ("jobs", "serve", "cluster", "benchmarks", "tests")


@pytest.mark.parametrize("path", modules("bloodcells", "jobs"), ids=str)
def test_few_rooms_know_ray(path: Path) -> None:
    if str(path.relative_to(ROOT)).startswith(MAY_IMPORT_RAY):
        return
    assert not any(name.split(".")[0] == "ray" for name in imports(path))


RAY_SERVE = (
    *("app", "archive_app", "archive_dispatch", "archive_keeper", "archive_poke"),
    *("endpoint", "metrics"),
)
"""Modules of ``serve/`` that know Ray; ``starting`` starts it. The rest can be tried without."""


@pytest.mark.parametrize("path", modules("serve"), ids=str)
def test_most_of_the_endpoint_knows_no_ray_and_none_of_it_the_commands(path: Path) -> None:
    for name in imports(path):
        assert name.split(".")[0] not in ("jobs", "benchmarks", "tests")
        if path.stem not in (*RAY_SERVE, "starting"):
            assert name.split(".")[0] != "ray", f"{path.name} imports {name}"
