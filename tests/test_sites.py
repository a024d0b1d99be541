"""Other labs: rulers, home, profiles, the sample that they are made of."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bloodcells.errors import ConfigurationError
from bloodcells.imaging import Preprocess, Tone, content_hash
from bloodcells.records import Shard
from bloodcells.sites import HomeReference, SiteProfile, measure_all, sample, sample_images
from bloodcells.sites.rulers import RULERS, Measures
from bloodcells.stores import open_store, plan_source
from bloodcells.synthetic import draw_cell
from tests.store_kinds import ENDINGS, write

DIGEST = "sha256:" + "1" * 64
TYPES = ("lymphocyte", "neutrophil", "platelet", "monocyte")


def encode_png(picture: np.ndarray) -> bytes:
    coded = io.BytesIO()
    Image.fromarray(picture).save(coded, "PNG")
    return coded.getvalue()


def drawn(num_each: int = 30) -> tuple[list[np.ndarray], np.ndarray]:
    pictures = [draw_cell(name, seed) for name in TYPES for seed in range(num_each)]
    return pictures, np.repeat(np.arange(len(TYPES)), num_each)


def measured(pictures: list[np.ndarray]) -> Measures:
    return measure_all(pictures)


@pytest.fixture(scope="module")
def home() -> HomeReference:
    pictures, labels = drawn()
    return HomeReference.learn(measured(pictures), labels)


def test_home_looks_like_home_whatever_the_cells(home: HomeReference) -> None:
    for name in TYPES:
        store = measured([draw_cell(name, 1000 + seed) for seed in range(60)])
        assert home.distance(store) < home.threshold


@pytest.mark.parametrize("lamp", [(0.7, 0.9, 1.0), (0.8, 0.8, 0.8)], ids=str)
def test_another_lamp_is_elsewhere(home: HomeReference, lamp: tuple[float, ...]) -> None:
    pictures, _ = drawn(10)
    dimmed = [np.rint(picture * np.array(lamp)).astype(np.uint8) for picture in pictures]
    assert home.distance(measured(dimmed)) > home.threshold


def test_home_travels_as_a_dict(home: HomeReference) -> None:
    again = HomeReference.from_dict(json.loads(json.dumps(home.to_dict())))
    store = measured(drawn(5)[0])
    assert again.distance(store) == pytest.approx(home.distance(store), abs=1e-3)
    with pytest.raises(ValueError, match="rulers"):
        HomeReference.from_dict({**home.to_dict(), "rulers": ["other"]})
    assert len(home.centre) == len(RULERS)


def test_a_profile_that_changes_nothing() -> None:
    preprocess = Preprocess(size=96, crop=0.65)
    profile = SiteProfile(bundle_digest=DIGEST, standing="home", distance=0.2, threshold=1.0)
    assert profile.changes_nothing
    assert not replace(profile, network="elsewhere").changes_nothing
    assert profile.seen_by(preprocess) is preprocess
    assert "look like those" in profile.sentence


def test_a_profile_changes_crop_and_stain() -> None:
    profile = SiteProfile(bundle_digest=DIGEST, crop=1.5, density=1.2)
    seen = profile.seen_by(Preprocess(size=96, crop=0.5, tone=Tone()))
    assert seen == Preprocess(size=96, crop=0.75, tone=Tone(density=1.2))
    assert profile.seen_by(Preprocess(size=96, crop=1.8)).crop == 2.0


def test_the_digest_is_over_what_decides_a_score() -> None:
    profile = SiteProfile(bundle_digest=DIGEST, crop=1.5)
    assert replace(profile, distance=3.0, num_images=7).digest == profile.digest
    changes = (
        {"crop": 1.4},
        {"density": 1.1},
        {"statistics": "AACAPwAAgD8="},
        {"network": "elsewhere"},
        {"temperature": 2.0},
        {"strange_above": 0.5},
    )
    for change in changes:
        assert replace(profile, **change).digest != profile.digest  # type: ignore[arg-type]


def test_a_profile_is_saved_and_read(tmp_path: Path) -> None:
    profile = SiteProfile(
        bundle_digest=DIGEST,
        crop=1.26,
        statistics="AACAPwAAgD8=",
        network="elsewhere",
        standing="elsewhere",
        distance=4.2,
        threshold=1.0,
        measures={"detail": (1.0, 2.0)},
    )
    profile.save(str(tmp_path))
    assert SiteProfile.load(str(tmp_path)) == profile
    assert SiteProfile.load(str(tmp_path / "site.json")) == profile
    assert "another lab" in json.loads((tmp_path / "site.json").read_text())["sentence"]


def test_a_profile_of_before_there_were_statistics_or_networks_is_read(tmp_path: Path) -> None:
    profile = SiteProfile(bundle_digest=DIGEST, crop=1.26)
    values = profile.to_dict()
    del values["statistics"], values["network"]
    (tmp_path / "site.json").write_text(json.dumps(values))
    assert SiteProfile.load(str(tmp_path)) == profile


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1]", '{"format": 9}'],
)
def test_what_is_no_profile_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "site.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"site\.json is not a site profile"):
        SiteProfile.load(str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"make one with python -m jobs\.site"):
        SiteProfile.load(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"crop": 9.0}, "crop and density must be"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"network": "third"}, "network must be home or elsewhere, not 'third'"),
        ({"standing": "elsewhere"}, "needs a distance and a threshold"),
    ],
    ids=str,
)
def test_what_no_profile_may_say(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SiteProfile(bundle_digest=DIGEST, **wrong)


def test_a_changed_profile_is_refused(tmp_path: Path) -> None:
    SiteProfile(bundle_digest=DIGEST).save(str(tmp_path))
    path = tmp_path / "site.json"
    path.write_text(path.read_text().replace('"crop": 1.0', '"crop": 1.1'))
    with pytest.raises(ConfigurationError, match="digest"):
        SiteProfile.load(str(tmp_path))


def test_a_profile_is_for_one_bundle() -> None:
    with pytest.raises(ConfigurationError, match="made for the bundle"):
        SiteProfile(bundle_digest=DIGEST).require_made_for("sha256:2", "sites/ours")


def test_the_sample_does_not_depend_on_the_container(tmp_path: Path) -> None:
    images = {
        f"neutrophil/cell-{seed:02d}.png": encode_png(draw_cell("neutrophil", seed))
        for seed in range(30)
    }
    samples = []
    for kind in ("folder", "tar", "targz", "zip", "parquet"):
        path = tmp_path / kind / f"store{ENDINGS[kind]}"
        write(path, kind, images)
        shards = [
            shard
            for source in open_store((str(path),)).sources()
            for shard in plan_source(source, shard_size=7)
            if isinstance(shard, Shard)
        ]
        assert len(shards) > 1 or kind in ("targz", "parquet")
        samples.append(sample_images(shards, 1000, sample_size=12))
    assert all(sample == samples[0] for sample in samples)
    chosen = [content_hash(data) for data in samples[0]]
    assert chosen == sorted(map(content_hash, images.values()))[:12]


def test_of_large_pictures_few_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = {f"{seed}.png": encode_png(draw_cell("monocyte", seed)) for seed in range(6)}
    write(tmp_path / "store", "folder", images)
    (source,) = open_store((str(tmp_path / "store"),)).sources()
    shards = [shard for shard in plan_source(source) if isinstance(shard, Shard)]
    monkeypatch.setattr(sample, "MOST_BYTES", sum(map(len, list(images.values())[:3])))
    assert len(sample_images(shards, 1000)) == 3
