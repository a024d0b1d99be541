"""``jobs.score --site``: where a store comes from, and scores by a profile."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from PIL import Image

from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.errors import ConfigurationError, RunMismatchError
from bloodcells.sites import HomeReference, SiteProfile, measure_all
from bloodcells.synthetic import BALANCED, ImageFile, draw_slide, write_archive
from jobs.score import ScoreConfig, score

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def images() -> list[ImageFile]:
    return list(draw_slide(BALANCED, 48, seed=21))


@pytest.fixture(scope="module")
def bundle(images: list[ImageFile], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shipped model, as if drawn cells were its home."""
    others = [image for seed in range(22, 26) for image in draw_slide(BALANCED, 24, seed=seed)]
    measures = measure_all([image.data for image in [*images, *others]])
    home = HomeReference.learn(measures, np.arange(len(measures)) % 8)
    folder = tmp_path_factory.mktemp("bundle")
    replace(ModelBundle.load(shipped_bundle_uri()), home=home).save(str(folder))
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
    # What it found can be given to another run, and scores are the same.
    given = run(tmp_path / "store", tmp_path / "given", bundle, site=str(tmp_path / "run"))
    assert given["settings"]["site"] == "given"
    assert rows(tmp_path / "given") == rows(tmp_path / "run")


def test_the_profile_does_not_depend_on_the_container(
    images: list[ImageFile], bundle: str, tmp_path: Path
) -> None:
    digests = set()
    for kind in ("folder", "tar", "zip"):
        name = f"a.{kind}" if kind != "folder" else "a"
        write_archive(tmp_path / kind / name, dimmed(images), kind)  # type: ignore[arg-type]
        found = run(tmp_path / kind, tmp_path / f"run-{kind}", bundle, shard_size=11)
        digests.add((found["site"]["digest"], found["site"]["distance"]))
    assert len(digests) == 1


def test_a_run_goes_on_with_the_profile_that_it_has(
    images: list[ImageFile], bundle: str, tmp_path: Path
) -> None:
    write_archive(tmp_path / "store" / "a", dimmed(images), "folder")
    out = tmp_path / "run"
    first = run(tmp_path / "store", out, bundle, shard_size=12)
    before = rows(out)
    next((out / "scores").iterdir()).unlink()
    (out / "run.json").write_text(json.dumps({**first, "status": "running"}))
    for path in sorted((tmp_path / "store" / "a").iterdir())[:3]:
        path.touch()  # nothing is looked at again
    again = run(tmp_path / "store", out, bundle, shard_size=12)
    assert again["site"] == first["site"]
    assert rows(out) == before
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
