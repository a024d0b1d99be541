"""How fast a run scores with a site profile, beside how fast it scores without.

Both are whole runs of ``jobs.score`` over the home archive in processes of their own, one after the
other in each round, the other way round in the next; what counts is the ratio of their images per
second, as each run's record has it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import run
from bloodcells.bundle import ModelBundle
from bloodcells.models.early_norm import statistics_of, to_text
from bloodcells.sites import SiteProfile

TIMEOUT_S = 1800.0
"""Most that one run may take."""

COSTLY = {"crop": 1.58, "density": 1.2, "temperature": 1.5}
"""More of each frame is resized, and every pixel's density is changed; early layers are moved."""


def throughput(folder: Path, bundle_uri: str, *, rounds: int = 4) -> dict[str, Any]:
    """Score home archives with a profile and without; returns images per second and ratios.

    Args:
        folder: of ``pbc-*.tar``.
        bundle_uri: the bundle.
        rounds: how often both are run.
    """
    stores = sorted(folder.glob("pbc-*.tar"))
    bundle = ModelBundle.load(bundle_uri)
    moved = to_text(statistics_of(bundle.build()) * 1.1)
    found: dict[str, list[float]] = {"none": [], "profile": []}
    with tempfile.TemporaryDirectory() as work:
        site = str(Path(work) / "site")
        SiteProfile(bundle_digest=bundle.digest, statistics=moved, **COSTLY).save(site)
        for number in range(rounds):
            ways = [("none", "none"), ("profile", site)]
            for name, given in ways if number % 2 == 0 else reversed(ways):
                out = Path(work) / f"{name}-{number}"
                found[name].append(_images_per_second(stores, bundle_uri, given, out))
    ratios = np.array(found["profile"]) / np.array(found["none"])
    print(
        f"scoring with a profile / without: {np.median(ratios):.3f} "
        f"({ratios.min():.3f}–{ratios.max():.3f} in {rounds} rounds; "
        f"{np.median(found['profile']):.0f} and {np.median(found['none']):.0f} images/s)"
    )
    return {"ratio": float(np.median(ratios)), "ratios": ratios.tolist(), "images_per_s": found}


def _images_per_second(stores: list[Path], bundle_uri: str, site: str, out: Path) -> float:
    command = [sys.executable, "-m", "jobs.score", "--out", str(out), "--site", site]
    command += ["--bundle", bundle_uri]
    for store in stores:
        command += ["--store", str(store)]
    log = out.with_suffix(".log")
    run(command, env=os.environ, cwd=Path.cwd(), log=log, timeout_s=TIMEOUT_S)
    record = json.loads((out / "run.json").read_text())
    return float(record["timings"]["images_per_second"])
