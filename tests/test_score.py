"""The main job from end to end, in this process, on a Ray that the tests share."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from bloodcells import storage
from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.cells import CLASSES
from bloodcells.errors import (
    BundleError,
    ConfigurationError,
    NotFoundError,
    QuarantineLimitError,
    RunError,
    RunIncompleteError,
    RunMismatchError,
    StoreError,
)
from bloodcells.loading import load_shard
from bloodcells.pipeline.run_drive import MOST_FAILED_IN_A_ROW
from bloodcells.publish import ShardOutcome
from bloodcells.records import (
    QUARANTINE_SCHEMA,
    SCORES_SCHEMA,
    SLIDES_SCHEMA,
    Shard,
    ShardKind,
)
from bloodcells.scoring import Scorer, score_loaded
from bloodcells.stores import open_store, plan_source
from bloodcells.synthetic import (
    NORMAL,
    ImageFile,
    draw_slide,
    write_archive,
)
from jobs.score import ScoreConfig, score
from tests.s3 import S3Server
from tests.score_jobs import record, rows, run_job

pytestmark = pytest.mark.usefixtures("ray_cluster")

SUFFIXES: dict[ShardKind, str] = {
    "folder": "slide",
    "tar": "slide.tar",
    "targz": "slide.tar.gz",
    "zip": "slide.zip",
    "parquet": "slide.parquet",
}


@pytest.fixture(scope="module")
def images() -> list[ImageFile]:
    return list(draw_slide(NORMAL, 40, seed=3))


@pytest.fixture(scope="module")
def store(images: list[ImageFile], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "slide"
    write_archive(folder, images, "folder")
    return folder


@pytest.fixture(scope="module")
def finished(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of twenty shards; tests that change it take a copy."""
    run = tmp_path_factory.mktemp("finished") / "run"
    run_job(store, run, shard_size=2)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run's own copy."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def resume(run: Path) -> None:
    """Make a finished run one that has yet to check its books."""
    (run / "run.json").write_text(json.dumps({**record(run), "status": "running"}))


def test_a_run_folder_is_what_was_promised(finished: Path) -> None:
    run = finished
    scores = rows(run)
    assert scores.schema.equals(SCORES_SCHEMA)
    assert rows(run, "quarantine").schema.equals(QUARANTINE_SCHEMA)
    assert len(scores) == 40 == len(set(scores["image_uri"].to_pylist()))
    probabilities = np.stack([scores[f"prob_{name}"].to_numpy() for name in CLASSES], axis=1)
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    best = np.array(CLASSES)[probabilities.argmax(axis=1)]
    assert best.tolist() == scores["predicted_class"].to_pylist()
    assert np.array_equal(probabilities.max(axis=1), scores["confidence"].to_numpy())
    bundle = ModelBundle.load(shipped_bundle_uri())
    assert set(scores["bundle_digest"].to_pylist()) == {bundle.digest}
    assert set(scores["site_digest"].to_pylist()) == {None}
    strange = scores["out_of_domain"].to_numpy()
    assert 20 < strange.sum() < 40, "drawn cells are no real ones, and most are seen to be none"
    unsure = scores["confidence"].to_numpy() < np.float32(bundle.calibration.review_below)
    everything = bundle.calibration.review_below == 1
    assert (strange | unsure | everything).tolist() == scores["needs_review"].to_pylist()
    slides = pq.read_table(run / "slides.parquet")
    assert slides.schema.equals(SLIDES_SCHEMA)
    assert sum(slides["num_images"].to_pylist()) == 40
    assert "<html" in (run / "report.html").read_text()
    facts = record(run)
    assert facts["status"] == "complete"
    assert not (run / "lease.json").exists()


def test_every_container_gives_the_same_scores(
    images: list[ImageFile], finished: Path, tmp_path: Path
) -> None:
    """One run over all kinds at once; each image is told by its content."""
    stores = []
    for kind, name in SUFFIXES.items():
        path = tmp_path / kind / name
        path.parent.mkdir()
        write_archive(path, images, kind)
        stores.append(str(path))
    run_job(tuple(stores), tmp_path / "run")
    everything = rows(tmp_path / "run")
    expected = rows(finished).sort_by("content_hash")
    for store in stores:
        table = everything.filter(
            pc.starts_with(everything["image_uri"], f"{os.path.realpath(store)}")
        ).sort_by("content_hash")
        for name in ("content_hash", "predicted_class", "label", "width_px", "height_px"):
            assert table[name].equals(expected[name]), (store, name)
        for name in CLASSES:
            ours = table[f"prob_{name}"].to_numpy()
            assert np.abs(ours - expected[f"prob_{name}"].to_numpy()).max() <= 1e-5


def test_the_engine_alone_gives_what_the_run_gives(store: Path, finished: Path) -> None:
    scorer = Scorer(ModelBundle.load(shipped_bundle_uri()), num_threads=1)
    tables = [
        score_loaded(load_shard(shard, scorer.bundle.preprocess), scorer)
        for source in open_store(str(store)).sources()
        for shard in plan_source(source, shard_size=2)
        if isinstance(shard, Shard)
    ]
    ours, theirs = pa.concat_tables(tables), rows(finished)
    assert ours.sort_by("image_uri").equals(theirs.sort_by("image_uri"))


def test_s3_from_end_to_end(
    images: list[ImageFile], s3: S3Server, finished: Path, tmp_path: Path
) -> None:
    write_archive(tmp_path / "slide.tar", images, "tar")
    store_uri = f"s3://{s3.bucket}/score/slide.tar"
    run_uri = f"s3://{s3.bucket}/score/run"
    storage.put(store_uri, (tmp_path / "slide.tar").read_bytes())
    run_job(store_uri, run_uri, shard_size=16)
    parts = sorted(entry.uri for entry in storage.listdir(f"{run_uri}/scores"))
    assert len(parts) == 3
    remote = pa.concat_tables(
        [pq.read_table(pa.BufferReader(storage.read(part))) for part in parts]
    ).sort_by("content_hash")
    local = rows(finished).sort_by("content_hash")
    assert remote["content_hash"].equals(local["content_hash"])
    for name in CLASSES:
        ours = remote[f"prob_{name}"].to_numpy()
        assert np.abs(ours - local[f"prob_{name}"].to_numpy()).max() <= 1e-5
    before = [(entry.uri, entry.tag) for entry in storage.walk(run_uri)]
    run_job(store_uri, run_uri, shard_size=16)
    assert before == [(entry.uri, entry.tag) for entry in storage.walk(run_uri)]


def test_resuming_reads_only_what_is_left(store: Path, run: Path) -> None:
    all_bytes = record(run)["timings"]["bytes_read"]
    whole = rows(run)
    next((run / "scores").iterdir()).unlink()
    resume(run)
    run_job(store, run, shard_size=2)
    assert 0 < record(run)["timings"]["bytes_read"] <= 0.06 * all_bytes
    assert rows(run).equals(whole)


def test_another_bundle_or_setting_is_refused(store: Path, run: Path, tmp_path: Path) -> None:
    shipped = ModelBundle.load(shipped_bundle_uri())
    other = dataclasses.replace(shipped, facts={**shipped.facts, "note": "another"})
    other.save(str(tmp_path / "bundle"))
    with pytest.raises(RunMismatchError, match="bundle_digest"):
        run_job(store, run, shard_size=2, bundle=str(tmp_path / "bundle"))
    with pytest.raises(RunMismatchError, match="shard_size: 2 in the folder, 7 asked for"):
        run_job(store, run, shard_size=7)
    run_job(store, run, bundle=str(tmp_path / "bundle"), restart=True)
    assert set(rows(run)["bundle_digest"].to_pylist()) == {other.digest}


def test_too_much_quarantine_stops_the_run_and_it_goes_on(
    images: list[ImageFile], tmp_path: Path
) -> None:
    bad = [ImageFile(name=f"bad-{k}.jpg", label="monocyte", data=b"text") for k in range(4)]
    write_archive(tmp_path / "slide.tar", [*images[:8], *bad], "tar")
    with pytest.raises(QuarantineLimitError, match=r"--max-quarantine 0\.2"):
        run_job(tmp_path / "slide.tar", tmp_path / "run")
    assert record(tmp_path / "run")["status"] == "incomplete"
    run_job(tmp_path / "slide.tar", tmp_path / "run", max_quarantine=0.5)
    assert record(tmp_path / "run")["status"] == "complete"


def test_quarantined_images_are_tried_again(images: list[ImageFile], tmp_path: Path) -> None:
    store = tmp_path / "slide"
    write_archive(store, images[:10], "folder")
    victim = sorted(store.rglob("*.jpg"))[3]
    sound = victim.read_bytes()
    victim.write_bytes(sound[:500])
    run_job(store, tmp_path / "run", shard_size=3)
    (row,) = rows(tmp_path / "run", "quarantine").to_pylist()
    assert row["reason"] == "undecodable"
    victim.write_bytes(sound)
    run_job(store, tmp_path / "run", shard_size=3, retry_quarantined=True)
    assert len(rows(tmp_path / "run")) == 10
    assert len(rows(tmp_path / "run", "quarantine")) == 0


def test_an_object_that_vanished_is_quarantined(store: Path, run: Path) -> None:
    victim = sorted(store.rglob("*.jpg"))[0]
    hidden = victim.rename(victim.with_suffix(".hidden"))
    for part in (run / "scores").iterdir():
        part.unlink()
    resume(run)
    try:
        run_job(store, run, shard_size=2)
    finally:
        hidden.rename(victim)
    (row,) = rows(run, "quarantine").to_pylist()
    assert row["reason"] == "missing_object"


def test_what_cannot_work_ends_before_any_work(store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises((StoreError, NotFoundError), match="nowhere"):
        run_job(tmp_path / "nowhere", run)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="empty"):
        run_job(tmp_path / "empty", run)
    with pytest.raises(StoreError):
        run_job((str(store), str(store)), run)
    with pytest.raises(BundleError):
        run_job(store, run, bundle=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match="there is no site profile"):
        run_job(store, run, site=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match="--scorers"):
        run_job(store, run, scorers="3:1")
    (tmp_path / "torn.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(StoreError, match=r"no image found.*torn\.zip: the zip has no sound"):
        run_job(tmp_path / "torn.zip", run)
    with pytest.raises(ConfigurationError, match="room for"):
        run_job(store, tmp_path / "crowded", scorers="64")
    assert not list(tmp_path.glob("run/*"))


def test_a_folder_that_is_no_runs_is_left_alone(store: Path, tmp_path: Path) -> None:
    precious = tmp_path / "lab" / "quarantine" / "kept.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("ours")
    for more in ({}, {"restart": True}):
        with pytest.raises(RunError, match=r"quarantine exists.*no run\.json"):
            run_job(store, tmp_path / "lab", **more)
    assert precious.read_text() == "ours"


def test_scores_are_not_written_among_images(store: Path) -> None:
    for out in (store, store / "run", store.parent):
        with pytest.raises(ConfigurationError, match="lie one in the other"):
            run_job(store, out)
    assert not list(store.parent.rglob("run.json"))


def test_a_restart_that_was_killed_begins_anew(store: Path, run: Path) -> None:
    """What is left of the run before is no part of the new one, whatever its shards are called."""
    (run / "run.json").write_text(json.dumps({**record(run), "status": "planning"}))
    stale = rows(run).slice(0, 2)
    for part in (run / "scores").iterdir():
        pq.write_table(stale, part)
    run_job(store, run, shard_size=2)
    assert len(set(rows(run)["image_uri"].to_pylist())) == 40


def test_a_plan_that_lost_a_file_is_made_anew(store: Path, run: Path) -> None:
    next((run / "plan").iterdir()).unlink()
    resume(run)
    with pytest.raises(RunError, match=r"but 40 in \d+ were listed; run the same command again"):
        run_job(store, run, shard_size=2)
    run_job(store, run, shard_size=2)
    assert len(rows(run)) == 40


def test_a_store_that_fails_all_the_time_ends_the_run(store: Path, run: Path) -> None:
    asked: list[str] = []

    def failing(run_uri: str, run_id: str, shards: Any, **more: object) -> Iterator[ShardOutcome]:
        for shard in shards:
            asked.append(shard.shard_id)
            yield ShardOutcome(shard_id=shard.shard_id, error="the store does not answer")

    for part in (run / "scores").iterdir():
        part.unlink()
    resume(run)
    config = ScoreConfig(store=(str(store),), out=str(run), shard_size=2, scorers="1", site="none")
    with pytest.raises(RunIncompleteError, match=r"40 of 40 .* the store does not answer"):
        score(config, pipeline=failing)
    assert len(asked) == MOST_FAILED_IN_A_ROW < 20
    assert record(run)["status"] == "incomplete"
    assert len(record(run)["missing"]) == MOST_FAILED_IN_A_ROW


def test_archives_of_one_name_are_pointed_out(
    images: list[ImageFile], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_archive(tmp_path / "store" / "ann" / "slide.tar", images[:2], "tar")
    write_archive(tmp_path / "store" / "bob" / "slide.zip", images[2:4], "zip")
    run_job(tmp_path / "store", tmp_path / "run")
    assert "slide slide is made of 2 archives" in capsys.readouterr().err


def test_a_bundle_with_a_flipped_byte_is_refused(store: Path, tmp_path: Path) -> None:
    shutil.copytree(shipped_bundle_uri(), tmp_path / "bundle")
    weights = tmp_path / "bundle" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match=str(tmp_path / "bundle")):
        run_job(store, tmp_path / "run", bundle=str(tmp_path / "bundle"))


def test_a_store_in_trouble_leaves_the_run_incomplete(
    store: Path, tmp_path: Path, images: list[ImageFile]
) -> None:
    """Refused access to one file is no fault of its data: nothing is quarantined for it."""
    if os.geteuid() == 0:
        pytest.skip("root may read everything; a folder in a file's place stands in below")
    write_archive(tmp_path / "slide", images[:6], "folder")
    victim = sorted((tmp_path / "slide").rglob("*.jpg"))[0]
    victim.chmod(0)
    with pytest.raises(RunIncompleteError):
        run_job(tmp_path / "slide", tmp_path / "run")
    victim.chmod(0o644)
    run_job(tmp_path / "slide", tmp_path / "run")
    assert len(rows(tmp_path / "run")) == 6
