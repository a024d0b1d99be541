"""What is made of a server's answers, and the servers that are compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import serve_tables
from benchmarks.answers import (
    Judgement,
    percentile,
    read_probabilities,
    summarise,
    why_void,
)
from benchmarks.contenders import serving as contenders
from benchmarks.contenders.rival_model import RivalModel
from benchmarks.processes import ContenderError, serving
from benchmarks.serve_archives import read_run
from benchmarks.serving import ROOT, Bench, started
from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.cells import CLASSES
from bloodcells.imaging import decode
from bloodcells.scoring import Scorer
from bloodcells.synthetic import draw_cell, encode_jpeg
from tests.known_answers import EXPECTED, STRICT, answer, right

pytest.importorskip("httptools", reason="httptools comes with the extra 'bench'")
pytest.importorskip("uvloop", reason="uvloop comes with the extra 'bench'")


def test_only_the_window_is_measured_and_failures_before_it_count() -> None:
    answers = [
        *(answer(k / 100, k + 1) for k in range(100)),
        answer(-0.5, 5.0),
        answer(-0.5, 9000.0),
        answer(-0.2, 1.0, status=500),
        answer(1.5, 1.0),
    ]
    found = summarise(answers, 1.0, STRICT)
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == pytest.approx((50, 90, 99))
    assert found.num_answered == 100
    assert found.images_per_second == 91  # the last nine ended too late
    assert found.num_failed == 1
    assert percentile([], 50) is None


@pytest.mark.parametrize(
    "body",
    [
        b"no json",
        b"[]",
        b'{"images": []}',
        b'{"images": [{"error": {"code": "undecodable"}}]}',
        right(0).replace(b"0.72", b"0.42"),
        right(0).replace(b'"predicted_class": "basophil"', b'"predicted_class": "cell"'),
    ],
)
def test_what_is_no_answer(body: bytes) -> None:
    assert read_probabilities(right(0)) is not None
    assert read_probabilities(body) is None


def test_another_model_is_found_out() -> None:
    answers = [answer(0.1, 1.0, image=k % 4) for k in range(8)]
    shifted = Judgement(expected=np.roll(EXPECTED, 1, axis=1))
    found = summarise(answers, 1.0, shifted)
    assert (found.num_wrong, found.agreement) == (0, 0.0)
    assert "class for 0.0% of the images" in str(why_void(asdict(found)))


def measured(per_second: float, p50_ms: float = 10.0, **other: Any) -> dict[str, Any]:
    found = summarise([answer(0.1, p50_ms)], 1.0, STRICT)
    return asdict(found) | {"images_per_second": per_second, "cpu_share": 0.02, **other}


def one_round(ours_at_64: float = 300.0, **other: Any) -> dict[str, Any]:
    return {
        "limit": {
            "machine": {"images_per_second": 500.0, "median_ms": 64.0, "batch": 32},
            "single_one_thread": {"images_per_second": 200.0, "median_ms": 6.0, "batch": 1},
            "single_all_threads": {"images_per_second": 250.0, "median_ms": 4.0, "batch": 1},
        },
        "ours": {
            "1": measured(90, p50_ms=12.0),
            "64": measured(ours_at_64),
            "256": measured(285.0),
        },
        "ray_recipe": {"64": measured(75)},
        "litserve": {"64": measured(200)},
        "litserve_fast_queue": {"64": measured(240)},
        **other,
    }


def test_targets_are_judged_round_by_round() -> None:
    rounds = [one_round(), one_round(320.0), one_round(280.0)]
    found = {each["what"]: each for each in serve_tables.judged(serve_tables.TARGETS, rounds)}
    assert found["ours / ray_recipe, at 64"]["value"]["median"] == pytest.approx(4.0)
    assert found["ours / the better litserve, at 64"]["value"]["median"] == pytest.approx(1.25)
    assert found["ours / the better litserve, at 64"]["met"] is False
    assert found["ours at 64 / limit"]["value"]["high"] == pytest.approx(0.64)
    assert found["ours at 256 / ours at its best"]["value"]["low"] == pytest.approx(285 / 320)
    lone = found["p50 of ours at 1 / (1.5 × one image by the bare model + 10 ms)"]
    assert (lone["value"]["median"], lone["met"]) == (pytest.approx(12 / 16), True)
    assert found["ours / ray_recipe_tuned, at 64"]["value"] is None
    assert serve_tables.best_speed(rounds, "ours") == 300
    text = serve_tables.target_table(serve_tables.TARGETS, rounds)
    assert "MISSED" in text
    assert "no measurement" in text


def test_a_void_round_is_no_measurement() -> None:
    bad = one_round(ray_recipe={"64": measured(9000, num_wrong=1, reasons=["wrong by 1"])})
    rounds = [one_round(), bad]
    found = {each["what"]: each for each in serve_tables.judged(serve_tables.TARGETS, rounds)}
    assert found["ours / ray_recipe, at 64"]["value"] is None
    assert found["ours at 64 / limit"]["met"] is True
    (row,) = [row for row in serve_tables.table(rounds).splitlines() if "ray_recipe" in row]
    assert "void" in row
    assert "1 wrong: wrong by 1" in row


def test_overload_shows_slow_refusals() -> None:
    refused = {"num_refused": 5, "refused_share": 0.5, "refused_p50_ms": 80.0}
    common = {"queued_images": 64, "statuses": {"200": 5, "503": 5}, **refused}
    fast = measured(400, way="fast", refused_p99_ms=99.0, num_without_retry_after=0, **common)
    slow = measured(400, way="slow", refused_p99_ms=101.0, num_without_retry_after=2, **common)
    _, first, second = serve_tables.overload_table([fast, slow]).splitlines()
    assert "MISSED" not in first
    assert "every 503 has Retry-After" in first
    assert "MISSED" in second
    assert "2 without Retry-After" in second


def test_a_run_is_read_and_a_lost_image_is_seen(tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    for k, rows in enumerate((100, 50, 50)):
        part = tmp_path / "scores" / f"part-{k}.parquet"
        pq.write_table(pa.table({"x": range(rows)}), part)
        os.utime(part, (1000 + 2 * k, 1000 + 2 * k))
    record = {"counts": {"scored": 200}, "timings": {"images_per_second": 33.0}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    found = read_run(tmp_path, 200)
    assert (found["images_per_second"], found["published_per_second"]) == (33.0, 25.0)
    with pytest.raises(ContenderError, match="200 rows for 201 images"):
        read_run(tmp_path, 201)


def test_our_server_is_given_flags_that_it_has() -> None:
    place = contenders.Place(port=1, bundle="b", root=Path("r"))
    command = contenders.ours("--read", "x", "--queued-images", "1").command(place)
    told = subprocess.run(
        [sys.executable, "-m", "serve", "--help"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    flags = [word for word in command if word.startswith("--")]
    assert len(flags) == 5
    assert all(flag in told for flag in flags)


def test_an_unknown_server_is_named() -> None:
    with pytest.raises(ValueError, match=r"--only nginx: no such server; there are limit, ours"):
        contenders.chosen("ours,nginx")


def test_a_server_is_ended_with_its_children(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
        " start_new_session=True)\n"
        "print('listening on', child.pid, flush=True)\n"
        "time.sleep(600)"
    )
    log = tmp_path / "log"
    command = [sys.executable, "-c", script]
    with serving("x", command, env=os.environ, cwd=tmp_path, log=log) as server:
        server.wait_until(lambda: "listening on" in log.read_text(), timeout_s=20)
        child = int(log.read_text().split()[-1])
        assert psutil.pid_exists(child)
    assert server.process.poll() is not None
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_server_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such port')"]
    with (
        pytest.raises(ContenderError, match=r"x: ended with exit code 1\n.*no such port"),
        serving("x", command, env=os.environ, cwd=tmp_path, log=tmp_path / "log") as server,
    ):
        server.wait_until(lambda: False, timeout_s=20)


def test_rivals_see_the_same_cell_and_run_the_same_model() -> None:
    bundle = ModelBundle.load(shipped_bundle_uri())
    data = [encode_jpeg(draw_cell(name, 3, size_px=360)) for name in CLASSES]
    pixels = np.stack([decode(each, bundle.preprocess).pixels for each in data])
    own = Scorer(bundle, device="cpu", num_threads=1).probabilities(pixels)
    rival = RivalModel(shipped_bundle_uri())
    pictures = [rival.decode(each) for each in data]
    assert np.abs(np.stack(pictures).astype(int) - pixels).mean() < 4
    found = [read_probabilities(json.dumps(each).encode()) for each in rival.classify(pictures)]
    num_same = np.sum(np.argmax(found, axis=1) == own.argmax(axis=1))
    assert num_same >= 7  # of 8; drawn cells are no real ones


def test_litserve_is_loaded_as_the_benchmark_does(tmp_path: Path) -> None:
    pytest.importorskip("litserve", reason="LitServe comes with the extra 'bench'")
    images = tmp_path / "images"
    images.mkdir()
    bundle = ModelBundle.load(shipped_bundle_uri())
    data = [encode_jpeg(draw_cell(name, 3, size_px=360)) for name in CLASSES]
    for k, each in enumerate(data):
        (images / f"{k:06d}.jpg").write_bytes(each)
    pixels = np.stack([decode(each, bundle.preprocess).pixels for each in data])
    expected = Scorer(bundle, device="cpu", num_threads=1).probabilities(pixels)
    np.save(tmp_path / "expected.npy", expected)
    bench = Bench(
        work=tmp_path,
        images=images,
        expected=tmp_path / "expected.npy",
        bundle=shipped_bundle_uri(),
        seconds=0.5,
        warm_up_s=0.5,
        timeout_s=60,
    )
    (server,) = [each for each in contenders.SERVERS if each.name == "litserve"]
    with started(bench, server) as target:
        found = target.load(concurrency=4)
    assert (found["num_failed"], found["num_wrong"]) == (0, 0), found["reasons"]
    assert found["num_answered"] > 4
    assert found["agreement"] > 0.8  # drawn cells are no real ones
    assert found["num_connections"] == 4
    assert found["server_rss_mib"] > 100
