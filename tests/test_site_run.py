"""``jobs.score --site``: where a store comes from, and scores by a profile."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import ray
from PIL import Image

from bloodcells import storage
from bloodcells.bundle import ModelBundle
from bloodcells.cells import CLASSES
from bloodcells.errors import (
    BloodcellsError,
    ConfigurationError,
    RunError,
    RunIncompleteError,
    RunMismatchError,
    UnavailableError,
)
from bloodcells.imaging import content_hash, decode
from bloodcells.pipeline import site_choice
from bloodcells.pipeline.following import Follower
from bloodcells.runs import open_run
from bloodcells.scoring import Scorer
from bloodcells.sites import HomeReference, SiteProfile, measure_all
from bloodcells.synthetic import BALANCED, ImageFile, draw_slide, write_archive
from jobs.score import ScoreConfig, score
from jobs.site import main as make_site
from tests import tiny_bundle
from tests.test_isolated import KILLER, SITECUSTOMIZE

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def images() -> list[ImageFile]:
    return list(draw_slide(BALANCED, 48, seed=21))


@pytest.fixture(scope="module")
def bundle(images: list[ImageFile], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small model, as if drawn cells were its home."""
    others = [image for seed in range(22, 26) for image in draw_slide(BALANCED, 24, seed=seed)]
    measures = measure_all([image.data for image in [*images, *others]])
    home = HomeReference.learn(measures, np.arange(len(measures)) % 8)
    folder = tmp_path_factory.mktemp("bundle")
    replace(tiny_bundle.untrained(), home=home).save(str(folder))
    return str(folder)


def dimmed(images: list[ImageFile]) -> list[ImageFile]:
    """Return pictures as under another lamp."""

    def dim(data: bytes) -> bytes:
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        coded = io.BytesIO()
        lamp = np.array([0.62, 0.75, 0.95])
        Image.fromarray(np.rint(pixels * lamp).astype(np.uint8)).save(coded, "PNG")
        return coded.getvalue()

    return [replace(image, data=dim(image.data)) for image in images]


def run(store: Path, out: Path, bundle: str, **more: Any) -> dict[str, Any]:
    score(ScoreConfig(store=(str(store),), out=str(out), bundle=bundle, scorers="1", **more))
    found: dict[str, Any] = json.loads((out / "run.json").read_text())
    return found


def rows(out: Path) -> pa.Table:
    return ds.dataset(out / "scores").to_table().sort_by("content_hash")


def test_at_home_nothing_changes(images: list[ImageFile], bundle: str, tmp_path: Path) -> None:
    write_archive(tmp_path / "store" / "a", images, "folder")
    auto = run(tmp_path / "store", tmp_path / "auto", bundle)
    run(tmp_path / "store", tmp_path / "none", bundle, site="none")
    assert auto["site"]["standing"] == "home"
    assert "look like those" in auto["site"]["sentence"]
    with_profile, without = rows(tmp_path / "auto"), rows(tmp_path / "none")
    assert set(with_profile["site_digest"].to_pylist()) == {auto["site"]["digest"]}
    assert set(without["site_digest"].to_pylist()) == {None}
    assert with_profile.drop_columns("site_digest") == without.drop_columns("site_digest")


def test_elsewhere_an_alarm_is_raised(
    images: list[ImageFile], bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_archive(tmp_path / "store" / "a", dimmed(images), "folder")
    found = run(tmp_path / "store", tmp_path / "run", bundle)
    assert found["site"]["standing"] == "elsewhere"
    assert found["site"]["distance"] > found["site"]["threshold"]
    assert "another lab" in capsys.readouterr().err
    assert "another lab" in (tmp_path / "run" / "report.html").read_text()
    profile = SiteProfile.load(str(tmp_path / "run"))
    assert profile.digest == found["settings"]["site_digest"] == found["site"]["digest"]
    assert set(rows(tmp_path / "run")["site_digest"].to_pylist()) == {profile.digest}
    # A score is a function of bytes, bundle and site.
    assert profile.statistics
    there = Scorer(ModelBundle.load(bundle), site=profile)
    by_hash = {content_hash(image.data): image.data for image in dimmed(images)}
    scored = rows(tmp_path / "run")
    pictures = [by_hash[each] for each in scored["content_hash"].to_pylist()]
    expected = there.probabilities(
        np.stack([decode(picture, there.seen).pixels for picture in pictures])
    )
    for k, name in enumerate(CLASSES):
        np.testing.assert_allclose(scored[f"prob_{name}"], expected[:, k], atol=1e-5)
    # What it found can be given to another run, and scores are the same.
    given = run(tmp_path / "store", tmp_path / "given", bundle, site=str(tmp_path / "run"))
    assert given["settings"]["site"] == "given"
    assert rows(tmp_path / "given") == rows(tmp_path / "run")


def test_the_profile_depends_neither_on_the_container_nor_on_the_job(
    images: list[ImageFile], bundle: str, tmp_path: Path
) -> None:
    write_archive(tmp_path / "folder" / "a", dimmed(images), "folder")
    found = run(tmp_path / "folder", tmp_path / "run", bundle, shard_size=11)["site"]
    for kind in ("tar", "zip"):
        write_archive(tmp_path / kind / f"a.{kind}", dimmed(images), kind)
        flags = ["--store", str(tmp_path / kind), "--bundle", bundle]
        assert make_site([*flags, "--out", str(tmp_path / f"site-{kind}")]) == 0
        profile = SiteProfile.load(str(tmp_path / f"site-{kind}"))
        assert (profile.digest, profile.distance) == (found["digest"], found["distance"])


def test_a_run_goes_on_with_the_profile_that_it_has(
    images: list[ImageFile], bundle: str, tmp_path: Path
) -> None:
    write_archive(tmp_path / "store" / "a", dimmed(images), "folder")
    out = tmp_path / "run"
    first = run(tmp_path / "store", out, bundle, shard_size=12)
    before = rows(out)
    next((out / "scores").iterdir()).unlink()
    (out / "run.json").write_text(json.dumps({**first, "status": "running"}))
    left = json.loads((out / "run.json").read_text())
    assert left["site"]["standing"] == "elsewhere"
    write_archive(tmp_path / "store" / "a", images, "folder")  # like home now: nobody looks
    again = run(tmp_path / "store", out, bundle, shard_size=12)
    assert again["site"] == first["site"]
    assert set(rows(out)["site_digest"].to_pylist()) == {first["site"]["digest"]}
    assert len(rows(out)) == len(before)
    with pytest.raises(RunMismatchError, match="site"):
        run(tmp_path / "store", out, bundle, site="none")


def test_a_profile_of_another_bundle_is_refused(
    images: list[ImageFile], bundle: str, tmp_path: Path
) -> None:
    write_archive(tmp_path / "store" / "a", images[:4], "folder")
    SiteProfile(bundle_digest="sha256:0", crop=1.2).save(str(tmp_path / "site"))
    with pytest.raises(ConfigurationError, match="made for the bundle sha256:0"):
        run(tmp_path / "store", tmp_path / "run", bundle, site=str(tmp_path / "site"))
    with pytest.raises(ConfigurationError, match="there is no site profile"):
        run(tmp_path / "store", tmp_path / "run", bundle, site=str(tmp_path / "nowhere"))
    assert not (tmp_path / "run").exists()


def test_few_pictures_say_nothing(images: list[ImageFile], bundle: str, tmp_path: Path) -> None:
    write_archive(tmp_path / "store" / "a", dimmed(images)[:10], "folder")
    found = run(tmp_path / "store", tmp_path / "run", bundle)
    assert found["site"]["standing"] == "unknown"
    assert found["site"]["crop"] == found["site"]["density"] == 1


def test_a_given_profile_does_not_silence_the_alarm(
    images: list[ImageFile], bundle: str, tmp_path: Path
) -> None:
    write_archive(tmp_path / "home" / "a", images, "folder")
    write_archive(tmp_path / "foreign" / "a", dimmed(images), "folder")
    at_home = run(tmp_path / "home", tmp_path / "first", bundle)
    given = run(tmp_path / "foreign", tmp_path / "second", bundle, site=str(tmp_path / "first"))
    assert (at_home["site"]["standing"], given["site"]["standing"]) == ("home", "elsewhere")
    assert given["site"]["distance"] > given["site"]["threshold"]
    assert given["site"]["digest"] == at_home["site"]["digest"]
    assert "another lab" in (tmp_path / "second" / "report.html").read_text()
    assert SiteProfile.load(str(tmp_path / "second")).standing == "elsewhere"


def test_a_store_that_grows_is_seen_in_one_way(
    images: list[ImageFile], bundle: str, tmp_path: Path
) -> None:
    write_archive(tmp_path / "store" / "a", images[:24], "folder")
    first = run(tmp_path / "store", tmp_path / "first", bundle)
    write_archive(tmp_path / "store" / "b", dimmed(images[24:]), "folder")
    since = str(tmp_path / "first")
    second = run(tmp_path / "store", tmp_path / "second", bundle, since=since)
    alone = run(tmp_path / "store" / "b", tmp_path / "alone", bundle)
    assert second["counts"]["listed"] == 24
    assert second["site"]["standing"] == alone["site"]["standing"] == "elsewhere"
    assert second["site"]["digest"] == first["site"]["digest"] != alone["site"]["digest"]
    assert second["settings"]["site"] == "auto"
    assert second["site"]["uri"] == since
    assert run(tmp_path / "store", tmp_path / "second", bundle, since=since) == second


def test_a_run_that_knew_nothing_has_no_profile_for_later_ones(
    images: list[ImageFile], bundle: str, tmp_path: Path
) -> None:
    write_archive(tmp_path / "store" / "a", dimmed(images[:8]), "folder")
    assert run(tmp_path / "store", tmp_path / "first", bundle)["site"]["standing"] == "unknown"
    write_archive(tmp_path / "store" / "b", dimmed(images[8:]), "folder")
    second = run(tmp_path / "store", tmp_path / "second", bundle, since=str(tmp_path / "first"))
    alone = run(tmp_path / "store" / "b", tmp_path / "alone", bundle)
    assert second["site"]["standing"] == "elsewhere"
    assert second["site"]["digest"] == alone["site"]["digest"]
    assert second["site"]["uri"] == "auto"


def test_work_that_dies_leaves_the_standing_unknown(
    images: list[ImageFile],
    bundle: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def dies(_: Any) -> None:
        os.abort()

    monkeypatch.setattr(site_choice, "_found_or_error", dies)
    monkeypatch.setattr(site_choice, "MAX_ATTEMPTS", 1)
    write_archive(tmp_path / "store" / "a", dimmed(images), "folder")
    found = run(tmp_path / "store", tmp_path / "run", bundle)
    assert (found["status"], found["site"]["standing"]) == ("complete", "unknown")
    assert found["site"]["crop"] == found["site"]["temperature"] == 1
    assert "nothing is known of where its pictures come from" in capsys.readouterr().err


def test_a_picture_that_ends_its_decoder_is_left_out(
    images: list[ImageFile], bundle: str, tmp_path: Path
) -> None:
    """In processes of its own, whose decoder has a fatal fault planted in it."""
    killer = ImageFile(name="killer.jpg", label=None, data=KILLER)
    write_archive(tmp_path / "store" / "a.tar", [*dimmed(images), killer], "tar")
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "jobs.score", "--store", str(tmp_path / "store")]
    done = subprocess.run(
        [*command, "--bundle", bundle, "--out", str(tmp_path / "run")],
        env=env | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "once more, one by one" in done.stderr
    found = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (found["site"]["standing"], found["site"]["num_images"]) == ("elsewhere", 48)
    assert (found["counts"]["scored"], found["counts"]["quarantined"]) == (48, 1)


def test_a_picture_that_hangs_is_looked_at_apart(
    images: list[ImageFile], bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = site_choice._found_or_error

    def hangs(asked: Any) -> Any:
        if not asked.isolated:
            time.sleep(600)
        return sound(asked)

    monkeypatch.setattr(site_choice, "_found_or_error", hangs)
    monkeypatch.setattr(site_choice, "PLAIN_S", 2.0)
    write_archive(tmp_path / "store" / "a", dimmed(images), "folder")
    found = run(tmp_path / "store", tmp_path / "run", bundle)
    assert (found["status"], found["site"]["standing"]) == ("complete", "elsewhere")


@pytest.mark.parametrize(
    ("is_outage", "message"),
    [
        (True, "s3://lab/slides does not answer"),
        (False, r"cannot be compared .*\(RuntimeError: nobody foresaw this\)"),
    ],
)
def test_trouble_ends_a_run_in_a_sentence_and_it_goes_on(
    is_outage: bool,
    message: str,
    images: list[ImageFile],
    bundle: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(_: Any) -> BloodcellsError:
        if is_outage:
            return UnavailableError("s3://lab/slides does not answer")
        raise RuntimeError("nobody foresaw this")

    write_archive(tmp_path / "store" / "a", images, "folder")
    with monkeypatch.context() as trouble:
        trouble.setattr(site_choice, "_found_or_error", fails)
        with pytest.raises(RunIncompleteError, match=message) as caught:
            run(tmp_path / "store", tmp_path / "run", bundle)
    assert "Traceback" not in str(caught.value)
    left = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (left["status"], left["site"]) == ("incomplete", None)
    assert not (tmp_path / "run" / "site.json").exists()
    assert run(tmp_path / "store", tmp_path / "run", bundle)["site"]["standing"] == "home"


def test_who_follows_may_end_it_meanwhile() -> None:
    class Cancels(Follower):
        def check(self) -> None:
            raise RunIncompleteError("cancelled")

    begun = time.monotonic()
    task: Any = ray.remote(num_cpus=0)(lambda: time.sleep(300)).remote()
    with pytest.raises(RunIncompleteError, match="cancelled"):
        site_choice._answer(task, 300, Cancels().check)
    assert time.monotonic() - begun < 60


def test_a_run_that_starts_anew_has_no_old_profile(
    images: list[ImageFile], bundle: str, tmp_path: Path
) -> None:
    bad = ImageFile(name="bad.jpg", label=None, data=b"no picture")
    write_archive(tmp_path / "store" / "a", [*images, bad], "folder")
    out = tmp_path / "run"
    first = run(tmp_path / "store", out, bundle)
    again = run(tmp_path / "store", out, bundle, retry_quarantined=True)
    assert again["site"] == first["site"]
    assert SiteProfile.load(str(out)).digest == first["site"]["digest"]
    run(tmp_path / "store", out, bundle, restart=True, site="none")
    assert not (out / "site.json").exists()


KILLED_AFTER_THE_PROFILE = """
import os, signal
from bloodcells.sites import SiteProfile
save = SiteProfile.save
def save_and_die(*args):
    save(*args)
    os.kill(os.getpid(), signal.SIGKILL)
SiteProfile.save = save_and_die
from jobs.score import main
main()
"""


def test_a_run_killed_between_its_profile_and_its_record(
    images: list[ImageFile], bundle: str, tmp_path: Path
) -> None:
    """A profile that no record names is nobody's: the run makes its own."""
    write_archive(tmp_path / "store" / "a", images, "folder")
    out = tmp_path / "run"
    flags = ["--store", str(tmp_path / "store"), "--out", str(out), "--bundle", bundle]
    flags += ["--scorers", "1"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AFTER_THE_PROFILE, *flags],
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        timeout=240,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    left = SiteProfile.load(str(out))
    assert json.loads((out / "run.json").read_text())["site"] is None
    replace(left, density=1.44).save(str(out))  # as if the store had been another then
    again = run(tmp_path / "store", out, bundle)
    assert again["status"] == "complete"
    assert again["site"]["digest"] == left.digest == SiteProfile.load(str(out)).digest
    assert set(rows(out)["site_digest"].to_pylist()) == {left.digest}


def test_a_damaged_profile_of_a_run_is_named(
    images: list[ImageFile], bundle: str, tmp_path: Path
) -> None:
    write_archive(tmp_path / "store" / "a", images, "folder")
    record = run(tmp_path / "store", tmp_path / "run", bundle)
    del record["site"]["digest"]
    storage.put(str(tmp_path / "run" / "run.json"), json.dumps(record).encode())
    found = open_run(str(tmp_path / "run"))
    assert found is not None
    with pytest.raises(RunError, match=r"run\.json: its site is no site profile .*--restart"):
        _ = found.profile
