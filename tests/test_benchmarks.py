"""Every contender does the work: a few images in, as many rows out. Nothing here is timed."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import site_card, tables
from benchmarks.bulk import time_one
from benchmarks.contenders import CONTENDERS, chosen
from benchmarks.material import Prepared, prepare
from benchmarks.processes import ContenderError, run
from benchmarks.sites import unmeasured_digest
from benchmarks.tables import JUDGED, Judged, Timing
from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.cells import CLASSES
from bloodcells.errors import ConfigurationError
from bloodcells.synthetic import ImageFile, draw_cell, encode_jpeg, write_archive
from jobs.flags import parse
from jobs.score import ScoreConfig
from tests.tiny_bundle import TINY_MODEL, untrained

NUM_IMAGES = 20

SCRIPTS = (
    "bare_folded_per_core",
    "plain",
    "plain_our_decoder_folded",
    "ray_recipe",
    "daft",
)
"""Every script but our own job, which has tests enough; compiling would take longer than all."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = [
        ImageFile(
            name=f"{k}.jpg",
            data=encode_jpeg(draw_cell(CLASSES[k % 8], k, size_px=128)),
            label=CLASSES[k % 8],
        )
        for k in range(NUM_IMAGES)
    ]
    return write_archive(tmp_path_factory.mktemp("store") / "cells.tar", images, "tar")


@pytest.fixture(scope="module")
def prepared(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    work = tmp_path_factory.mktemp("work")
    return prepare([str(store)], (5, NUM_IMAGES), TINY_MODEL, work)


def timing(contender: str, number: int, num_images: int, seconds: float) -> Timing:
    return Timing(
        contender=contender,
        round=number,
        num_images=num_images,
        seconds=seconds,
        driver_rss_bytes=2**20,
        workers_uss_bytes=0,
        workers_rss_bytes=0,
        num_workers=0,
        num_left_over=0,
        sampling_share=0.0,
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_row_for_every_image(name: str, prepared: Prepared, tmp_path: Path) -> None:
    if name == "daft":
        pytest.importorskip("daft", reason="Daft comes with the extra 'bench'")
    (contender,) = chosen(name)
    found = time_one(contender, prepared.of(NUM_IMAGES), 1, tmp_path, timeout_s=240)
    assert found.num_images == NUM_IMAGES  # time_one has counted the rows
    assert found.seconds > 0


@pytest.mark.parametrize("name", ["ours", "ours_compiled"])
def test_our_job_is_given_flags_that_it_has(name: str, prepared: Prepared, tmp_path: Path) -> None:
    (contender,) = chosen(name)
    _, flag, module, *arguments = contender.command(prepared.of(5), tmp_path / "out")
    assert (flag, module) == ("-m", "jobs.score")
    config = parse(ScoreConfig, "score", arguments)
    assert config.store == (str(prepared.of(5).folder),)
    assert config.compile == (name == "ours_compiled")


def test_sizes_share_their_first_images(prepared: Prepared) -> None:
    few = {path.relative_to(prepared.of(5).folder) for path in prepared.of(5).folder.rglob("*.jpg")}
    folder = prepared.of(NUM_IMAGES).folder
    many = {path.relative_to(folder) for path in folder.rglob("*.jpg")}
    assert (len(few), len(many)) == (5, NUM_IMAGES)
    assert few <= many


def test_a_store_too_small_is_read_again(store: Path, tmp_path: Path) -> None:
    folder = prepare([str(store)], (45,), TINY_MODEL, tmp_path).of(45).folder
    images = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"), key=lambda p: p.name)]
    assert len(images) == 45
    assert images[20:40] == images[:20]
    assert images[40:] == images[:5]


def test_a_store_without_jpegs_is_named(tmp_path: Path) -> None:
    write_archive(tmp_path / "slide", [ImageFile(name="a.png", label=None, data=b"x")], "folder")
    with pytest.raises(ConfigurationError, match="slide: no JPEG image"):
        prepare([str(tmp_path / "slide")], (5,), TINY_MODEL, tmp_path / "work")


def test_an_unknown_contender_is_named() -> None:
    with pytest.raises(ValueError, match=r"--only spark: no such contender; there are .*plain"):
        chosen("ours,spark")


def test_judged_ratios_are_of_contenders() -> None:
    names = {contender.name for contender in CONTENDERS}
    assert all(names.issuperset(judged.above + judged.below) for judged in JUDGED)


def test_startup_cancels_out_of_speed_and_ratio() -> None:
    timings = [
        *(timing("ours", 1, n, 30 + n / 200) for n in (100, 500)),
        *(timing("ours", 2, n, 50 + n / 220) for n in (100, 500)),
        *(timing("plain", 1, n, 2 + n / 100) for n in (100, 500)),
        *(timing("plain", 2, n, 2 + n / 100) for n in (100, 500)),
        timing("plain", 0, 64, 9.0),
    ]
    judged = Judged(what="", target="", above=("ours",), below=("plain",))
    spread = tables.ratio(judged, timings)
    assert spread is not None
    assert (spread.low, spread.median, spread.high) == pytest.approx((2.0, 2.1, 2.2))
    plain = tables.summary(timings)["plain"]
    assert plain["startup_seconds"].median == pytest.approx(2)
    assert plain["first_start_seconds"] == 9.0
    assert "2.100 (2.000–2.200)" in tables.ratio_table(timings)
    assert tables.ratio(Judged(what="", target="", above=("daft",), below=("plain",)), []) is None


def test_noise_is_no_speed() -> None:
    timings = [
        *(timing("ours", 1, n, 30 + n / 200) for n in (100, 500)),
        *(timing("plain", 1, n, 2 + n / 100) for n in (100, 500)),
        *(timing("ours", 2, n, 30 - n / 200) for n in (100, 500)),
        *(timing("plain", 2, n, 2 + n / 100) for n in (100, 500)),
    ]
    assert set(tables.speeds(timings)) == {"plain"}
    assert (
        tables.ratio(Judged(what="", target="", above=("ours",), below=("plain",)), timings) is None
    )
    assert "void" in tables.table(chosen("ours"), timings)


def test_a_failure_shows_the_end_of_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such weights')"]
    with pytest.raises(ContenderError, match=r"exit code 1\n.*no such weights"):
        run(command, env=os.environ, cwd=tmp_path, log=tmp_path / "log", timeout_s=30)


def test_what_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    script = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
        " start_new_session=True)\n"
        "pathlib.Path('child').write_text(str(child.pid))\n"
        "time.sleep(600)"
    )
    with pytest.raises(ContenderError, match="was stopped after 4 s"):
        run(
            [sys.executable, "-c", script],
            env=os.environ,
            cwd=tmp_path,
            log=tmp_path / "log",
            timeout_s=4,
        )
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 5
    while _is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _is_alive(child)


def _is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_accuracy_is_read_of_the_bundle_that_ships(store: Path, tmp_path: Path) -> None:
    with tarfile.open(store) as archive, (tmp_path / "splits.csv").open("w", newline="") as file:
        rows = [(store.name, member.name, "val") for member in archive if member.isfile()]
        csv.writer(file).writerows([("shard", "member", "split"), *rows[:12]])
    log, found = tmp_path / "readings.md", tmp_path / "accuracy.json"
    command = [sys.executable, "-m", "benchmarks.accuracy", "--store", str(store.parent)]
    command += ["--splits", str(tmp_path / "splits.csv"), "--split", "val"]
    command += ["--log", str(log), "--json", str(found)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1], timeout=300)
    figures = json.loads(found.read_text())
    assert figures["num_images"] == 12 == sum(map(sum, figures["confusion"]))
    assert f"`{figures['bundle_digest'][7:19]}` | val | 12 |" in log.read_text()


def test_no_bundle_is_told_anothers_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    untrained().save(str(tmp_path / "bundle"))
    flags = ["--bundle", str(tmp_path / "bundle"), "--out", str(tmp_path / "told")]
    monkeypatch.setattr(sys, "argv", ["site_card", *flags])
    with pytest.raises(SystemExit):
        site_card.main()
    assert "is of another bundle than" in capsys.readouterr().err
    assert not (tmp_path / "told").exists()


def test_what_the_shipped_bundle_tells_is_what_was_measured() -> None:
    results = Path(__file__).parents[1] / "benchmarks" / "results"
    sites, look = (
        json.loads((results / name).read_text()) for name in ("sites.json", "sites-look-3.json")
    )
    bundle = ModelBundle.load(shipped_bundle_uri())
    assert sites["unmeasured_digest"] == unmeasured_digest(bundle)
    assert bundle.measured == site_card.measured(sites, look)
    assert {row["what"] for row in bundle.measured if "by earlier weights" in row["what"]}
