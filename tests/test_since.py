"""Which earlier runs count: the newest one beside, and which of their plans a source may be in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bloodcells import publish, storage
from bloodcells.errors import ConfigurationError, RunError
from bloodcells.pipeline.since import EarlierRuns, newest_run_beside
from bloodcells.records import Member, Shard
from bloodcells.runs import Run, RunSettings
from bloodcells.stores import Source
from bloodcells.synthetic import NORMAL, draw_slide, write_archive
from jobs.score import ScoreConfig, score
from tests.score_jobs import record, rows, run_job

SETTINGS: dict[str, Any] = {
    "stores": ("/store",),
    "bundle_digest": "sha256:1",
    "site_digest": None,
    "precision": "float32",
    "micro_batch": 32,
    "compiled": False,
    "shard_size": 1000,
    "slide_pattern": None,
}


def save(
    uri: Path, status: Any = "complete", finished: str | None = None, since: str | None = None
) -> str:
    settings = RunSettings(**SETTINGS, since=since)
    Run(uri=str(uri), settings=settings, bundle={}, status=status, finished=finished).save()
    return str(uri)


def test_the_newest_is_the_one_that_was_completed_last(tmp_path: Path) -> None:
    assert newest_run_beside(str(tmp_path / "none" / "run")) is None
    assert newest_run_beside(str(tmp_path / "today")) is None
    save(tmp_path / "a", finished="2026-11-20T01:00:00+00:00")
    newest = save(tmp_path / "b", finished="2026-11-22T01:00:00+00:00")
    save(tmp_path / "c", finished="2026-11-21T01:00:00+00:00")
    save(tmp_path / "d", status="incomplete")
    save(tmp_path / "e", status="running")
    save(tmp_path / "f" / "below", finished="2026-11-25T01:00:00+00:00")
    (tmp_path / "file").write_text("no folder")
    for name, text in {
        "dataset": "{}",
        "other": '{"status": "complete", "finished": "2027"}',
        "list": "[]",
        "torn": '{"status": "comp',
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    (tmp_path / "empty").mkdir()
    assert newest_run_beside(str(tmp_path / "today")) == newest


def test_a_run_never_builds_on_itself(tmp_path: Path) -> None:
    first = save(tmp_path / "1", finished="2026-11-20T01:00:00+00:00")
    second = save(tmp_path / "2", finished="2026-11-21T01:00:00+00:00", since=first)
    save(tmp_path / "3", finished="2026-11-22T01:00:00+00:00", since=second)
    assert newest_run_beside(second) == first  # as it is made anew
    assert newest_run_beside(first) is None


def plan(run: Path, number: int, folder: str, *names: str) -> str:
    members = tuple(
        Member(
            image_uri=f"{folder}/{name}",
            name=name,
            offset=0,
            size=1,
            tag="t",
            slide_id="s",
            label=None,
        )
        for name in names
    )
    uri = f"{run}/plan/x-{number:06d}.parquet"
    storage.put(uri, publish.plan_bytes([Shard.make(folder, "folder", (m,)) for m in members]))
    return uri


def source(uri: str, **more: Any) -> Source:
    return Source(uri=uri, kind="folder", size=0, tag="", root="/s", **more)


def test_only_plans_that_reach_into_a_part_are_read(tmp_path: Path) -> None:
    run = tmp_path / "run"
    low = plan(run, 0, "/s", "a.jpg", "c.jpg", "b.jpg")
    high = plan(run, 1, "/s", "d.jpg", "k/é.jpg", "漢.jpg")
    sub = plan(run, 2, "/s/k", "a.jpg", "z.jpg")
    save(run)
    earlier = EarlierRuns.chain(str(run))
    assert earlier.plans_of(source("/s")) == [low, high, sub]
    assert earlier.plans_of(source("/s", upto="b.jpg")) == [low]
    assert earlier.plans_of(source("/s", after="c.jpg")) == [high, sub]
    assert earlier.plans_of(source("/s", after="c.jpg", upto="cc")) == []
    assert earlier.plans_of(source("/s", after="k/z", upto="k/zz")) == [high, sub]
    assert earlier.plans_of(source("/s/k")) == [high, sub]
    assert earlier.plans_of(source("/s/k", after="é.jpg")) == [high]
    assert earlier.plans_of(source("/s", recursive=False)) == [low, high]
    assert earlier.plans_of(source("/t")) == []


@pytest.mark.usefixtures("ray_cluster")
def test_nightly_runs_score_what_is_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = list(draw_slide(NORMAL, 12, seed=5))
    store, runs = tmp_path / "store", tmp_path / "runs"

    def night(name: str) -> dict[str, Any]:
        score(
            ScoreConfig(
                store=(str(store),), out=str(runs / name), since="latest", scorers="1", shard_size=4
            )
        )
        found: dict[str, Any] = json.loads((runs / name / "run.json").read_text())
        return found

    write_archive(store / "a", images[:5], "folder")
    first = night("monday")
    assert "no complete run beside" in capsys.readouterr().err
    assert (first["settings"]["since"], first["counts"]["listed"]) == (None, 5)
    write_archive(store / "a", images[5:8], "folder")
    second = night("tuesday")
    assert "tuesday" not in second["settings"]["since"]
    assert second["settings"]["since"] == str(runs / "monday")
    assert second["counts"]["listed"] == 3
    # Cut short and gone on with, it keeps what it began with, whatever was completed since.
    save(runs / "later", finished="2999-01-01T00:00:00+00:00")
    for part in (runs / "tuesday" / "scores").iterdir():
        part.unlink()
    (runs / "tuesday" / "run.json").write_text(json.dumps({**second, "status": "running"}))
    again = night("tuesday")
    assert again["settings"] == second["settings"]
    assert again["counts"] == second["counts"]
    assert night("tuesday") == again  # complete already
    (runs / "later" / "run.json").unlink()
    assert night("wednesday")["counts"]["listed"] == 0


@pytest.mark.usefixtures("ray_cluster")
def test_since_scores_only_what_is_new(tmp_path: Path) -> None:
    images = list(draw_slide(NORMAL, 40, seed=3))
    store = tmp_path / "store"
    write_archive(store / "one.tar", images[:10], "tar")
    write_archive(store / "loose", images[10:14], "folder")
    run_job(store, tmp_path / "first")
    write_archive(store / "two.tar", images[20:25], "tar")
    write_archive(store / "loose", images[14:17], "folder")
    run_job(store, tmp_path / "second", since=str(tmp_path / "first"))
    assert len(rows(tmp_path / "second")) == 5 + 3
    write_archive(store / "three.tar", images[30:31], "tar")
    run_job(store, tmp_path / "third", since=str(tmp_path / "second"))
    assert len(rows(tmp_path / "third")) == 1
    run_job(store, tmp_path / "fourth", since=str(tmp_path / "third"))
    assert record(tmp_path / "fourth")["counts"]["listed"] == 0
    assert record(tmp_path / "fourth")["status"] == "complete"
    # The loose images go by another name now: their folder instead of the store.
    run_job(store / "loose", tmp_path / "sixth", since=str(tmp_path / "third"))
    assert record(tmp_path / "sixth")["counts"]["listed"] == 0
    with pytest.raises(RunError, match=r"no run\.json"):
        run_job(store, tmp_path / "fifth", since=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match="--since builds on"):
        run_job(store, tmp_path / "second", since=str(tmp_path / "third"), restart=True)
