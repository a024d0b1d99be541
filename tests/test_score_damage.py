"""Damaged images and archives in a run: each image ends as one row, and takes no other along."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bloodcells.records import REASONS
from bloodcells.synthetic import (
    NORMAL,
    ImageFile,
    damaged_archives,
    damaged_files,
    draw_slide,
    write_archive,
)
from tests.score_jobs import record, rows, run_job
from tests.test_isolated import KILLER, SITECUSTOMIZE

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_damage_of_every_kind_ends_as_one_row_each(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    files = [file for file in damaged_files() if not file.archive_only]
    write_archive(folder, files, "folder")
    run_job(folder, tmp_path / "run", max_quarantine=1.0)
    facts = record(tmp_path / "run")["counts"]
    assert facts["listed"] == facts["scored"] + facts["quarantined"] == len(files)
    found = dict(
        zip(
            (
                Path(uri).name
                for uri in rows(tmp_path / "run", "quarantine")["image_uri"].to_pylist()
            ),
            rows(tmp_path / "run", "quarantine")["reason"].to_pylist(),
            strict=True,
        )
    )
    expected = {
        Path(file.name).name: file.expected_reason for file in files if file.expected_reason
    }
    assert found == expected
    assert set(found.values()) <= set(REASONS)


def test_damaged_archives_lose_nothing(tmp_path: Path) -> None:
    archives = damaged_archives(tmp_path / "archives")
    run_job(tmp_path / "archives", tmp_path / "run", max_quarantine=1.0)
    scored = Counter(uri.split("#")[0] for uri in rows(tmp_path / "run")["image_uri"].to_pylist())
    quarantined = Counter(
        (uri.split("#")[0], reason)
        for uri, reason in zip(
            rows(tmp_path / "run", "quarantine")["image_uri"].to_pylist(),
            rows(tmp_path / "run", "quarantine")["reason"].to_pylist(),
            strict=True,
        )
    )
    problems = {p["uri"] for p in record(tmp_path / "run")["source_problems"]}
    for archive in archives:
        uri = os.path.realpath(archive.path)
        sound = sum(reason is None for _, reason in archive.members)
        # What lies at a break is left open: it may be found all the same.
        is_right = scored[uri] >= sound if archive.cut_short else scored[uri] == sound
        assert is_right, archive.why
        faults = Counter((uri, reason) for _, reason in archive.members if reason)
        for fault, count in faults.items():
            assert quarantined[fault] >= count, archive.why
        assert (uri in problems) == archive.cut_short, archive.why


def test_an_image_that_kills_its_decoder_is_quarantined_alone(tmp_path: Path) -> None:
    """In processes of its own, whose decoder has a fatal fault planted in it."""
    images = list(draw_slide(NORMAL, 20, seed=3))
    bad = ImageFile(name="killer.jpg", label="neutrophil", data=KILLER)
    write_archive(tmp_path / "slide.tar", [*images[:10], bad, *images[10:]], "tar")
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    env["PYTHONPATH"] = str(tmp_path)
    command = [sys.executable, "-m", "jobs.score", "--store", str(tmp_path / "slide.tar")]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")],
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "run")) == 20
    (row,) = rows(tmp_path / "run", "quarantine").to_pylist()
    assert row["image_uri"].endswith("killer.jpg")
    assert row["reason"] == "decoder_crashed"
    assert row["content_hash"] is not None
