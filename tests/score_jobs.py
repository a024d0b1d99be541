"""Runs of the main job in this process, and what is in their folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from jobs.score import ScoreConfig, score


def run_job(store: Path | str | tuple[str, ...], out: Path | str, **more: object) -> None:
    stores = store if isinstance(store, tuple) else (str(store),)
    score(ScoreConfig(store=stores, out=str(out), **{"scorers": "1", "site": "none", **more}))  # type: ignore[arg-type]


def rows(run: Path, table: str = "scores") -> pa.Table:
    return ds.dataset(run / table).to_table()


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found
