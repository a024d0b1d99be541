"""A bundle is verified by a process of its own, and the driver of a run does without torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bloodcells.bundle import ModelBundle
from bloodcells.bundle_facts import shipped_bundle_uri, verified_apart
from bloodcells.errors import BundleError


def test_what_a_process_of_its_own_finds_is_what_loading_finds() -> None:
    apart, loaded = verified_apart(shipped_bundle_uri()), ModelBundle.load(shipped_bundle_uri())
    assert apart.digest == loaded.digest
    assert apart.model_name == loaded.model_name
    assert apart.preprocess == loaded.preprocess
    assert apart.calibration.to_dict() == loaded.calibration.to_dict()
    assert np.array_equal(apart.calibration.confusion, loaded.calibration.confusion)


def test_what_was_measured_elsewhere_travels_with_a_bundle(tmp_path: Path) -> None:
    shipped = ModelBundle.load(shipped_bundle_uri())
    rows = [{"what": "photographs", "figure": "AUC", "value": 0.99, "low": 0.98, "high": 1.0}]
    replace(shipped, facts={**shipped.facts, "measured": rows}).save(str(tmp_path))
    assert "| photographs | AUC | 0.990 (0.980–1.000) |" in (tmp_path / "MODEL_CARD.md").read_text()
    assert verified_apart(str(tmp_path)).measured == rows
    assert ModelBundle.load(str(tmp_path)).measured == rows


def test_a_bundle_that_is_refused_is_refused_with_the_same_words(tmp_path: Path) -> None:
    shutil.copytree(shipped_bundle_uri(), tmp_path / "bundle")
    weights = tmp_path / "bundle" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError) as found:
        verified_apart(str(tmp_path / "bundle"))
    with pytest.raises(BundleError) as expected:
        ModelBundle.load(str(tmp_path / "bundle"))
    assert str(found.value) == str(expected.value)


def test_the_driver_of_a_run_imports_no_torch() -> None:
    modules = "jobs.score, bloodcells.report, bloodcells.pipeline.compaction"
    code = f"import sys, {modules}; print(sorted({{'torch', 'timm'}} & set(sys.modules)))"
    root = Path(__file__).parents[1]
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
