"""Bundles: what is saved is what is loaded, on disk and S3; whatever was changed is refused."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bloodcells import storage
from bloodcells.bundle import (
    CARD_NAME,
    MANIFEST_NAME,
    WEIGHTS_NAME,
    Calibration,
    ModelBundle,
    shipped_bundle_uri,
    shipping_precision,
)
from bloodcells.cells import CLASSES
from bloodcells.errors import BundleError
from bloodcells.imaging import Preprocess
from bloodcells.models import create_model
from bloodcells.sites import SiteProfile
from tests.s3 import S3Server

MODEL = "test_efficientnet"
"""timm's smallest, 0.4 M parameters, made for tests."""


def calibration() -> Calibration:
    return Calibration(
        temperature=1.25,
        confusion=np.diag(np.arange(10, 18)),
        train_counts=np.arange(100, 108),
        review_below=0.9,
    )


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    torch.manual_seed(1)
    return ModelBundle(
        model_name=MODEL,
        preprocess=Preprocess(size=96, crop=0.65),
        calibration=calibration(),
        state_dict=shipping_precision(create_model(MODEL).state_dict()),
        facts={"data": None},
    )


@pytest.fixture
def saved(bundle: ModelBundle, tmp_path: Path) -> Path:
    bundle.save(str(tmp_path / "bundle"))
    return tmp_path / "bundle"


def same(one: ModelBundle, other: ModelBundle) -> bool:
    return one.digest == other.digest and all(
        torch.equal(tensor, other.state_dict[name]) for name, tensor in one.state_dict.items()
    )


def test_a_card_takes_the_data_in_words(bundle: ModelBundle, tmp_path: Path) -> None:
    replace(bundle, facts={"data": "drawn cells"}).save(str(tmp_path))
    assert "- Cells: drawn cells" in (tmp_path / CARD_NAME).read_text()


def test_round_trip(bundle: ModelBundle, saved: Path) -> None:
    loaded = ModelBundle.load(str(saved))
    assert same(bundle, loaded)
    assert loaded.preprocess == bundle.preprocess
    assert loaded.calibration.to_dict() == bundle.calibration.to_dict()
    pixels = torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(loaded.build().eval()(pixels), bundle.build().eval()(pixels))


def test_round_trip_on_s3(bundle: ModelBundle, s3: S3Server) -> None:
    uri = f"s3://{s3.bucket}/bundles/one"
    bundle.save(uri)
    assert same(bundle, ModelBundle.load(uri))
    assert same(bundle, ModelBundle.load(f"{uri}@{bundle.digest}"))


def test_saving_again_changes_no_byte(bundle: ModelBundle, saved: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    ModelBundle.load(str(saved)).save(str(saved))
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert set(before) == {MANIFEST_NAME, WEIGHTS_NAME, CARD_NAME}


def moved(bundle: ModelBundle) -> ModelBundle:
    """Return a bundle of other weights that sees pictures in the same way."""
    weights = {name: t + 0.01 if t.ndim > 1 else t for name, t in bundle.state_dict.items()}
    return replace(bundle, state_dict=weights)


def test_a_network_for_other_labs_travels_with_the_bundle(
    bundle: ModelBundle, tmp_path: Path
) -> None:
    other = moved(bundle)
    both = replace(bundle, elsewhere=other)
    assert both.digest not in (bundle.digest, other.digest)
    assert both.digest != replace(bundle, elsewhere=moved(other)).digest
    both.save(str(tmp_path))
    loaded = ModelBundle.load(str(tmp_path))
    assert same(both, loaded) and loaded.elsewhere and same(other, loaded.elsewhere)
    assert other.digest in (tmp_path / CARD_NAME).read_text()
    there = SiteProfile(bundle_digest=both.digest, network="elsewhere")
    assert loaded.at(there) is loaded.elsewhere and loaded.at(None) is loaded
    pixels = torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(loaded.build(there).eval()(pixels), other.build().eval()(pixels))
        assert torch.equal(loaded.build().eval()(pixels), bundle.build().eval()(pixels))
    with pytest.raises(BundleError, match=r"asks for a network for other labs.*jobs\.site"):
        bundle.build(there)


def test_a_network_for_other_labs_that_is_damaged_is_named(
    bundle: ModelBundle, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere"
    replace(bundle, elsewhere=moved(bundle)).save(str(tmp_path))
    moved(moved(bundle)).save(str(folder))  # whole, but another
    with pytest.raises(BundleError, match=f"at {folder} has digest sha256:.*not the pinned"):
        ModelBundle.load(str(tmp_path))
    (folder / MANIFEST_NAME).unlink()
    with pytest.raises(BundleError, match=rf"no model bundle at {folder}: bundle\.json is missing"):
        ModelBundle.load(str(tmp_path))


def test_both_networks_see_pictures_in_the_same_way(bundle: ModelBundle) -> None:
    with pytest.raises(BundleError, match="same size, crop and tone"):
        replace(bundle, elsewhere=replace(bundle, preprocess=Preprocess(size=96, crop=0.7)))
    with pytest.raises(BundleError, match="none for other labs itself"):
        replace(bundle, elsewhere=replace(bundle, elsewhere=moved(bundle)))


def test_the_digest_covers_everything(bundle: ModelBundle) -> None:
    weights = dict(bundle.state_dict)
    name = next(iter(weights))
    weights[name] = weights[name] + 1
    changed = [
        replace(bundle, state_dict=weights),
        replace(bundle, preprocess=Preprocess(size=96, crop=0.66)),
        replace(bundle, calibration=replace(bundle.calibration, temperature=1.26)),
        replace(bundle, facts={"data": "others"}),
        replace(bundle, model_name="test_efficientnet_gn"),
    ]
    assert len({bundle.digest, *(other.digest for other in changed)}) == len(changed) + 1


def test_pinned(bundle: ModelBundle, saved: Path) -> None:
    assert same(bundle, ModelBundle.load(f"{saved}@{bundle.digest}"))
    other = "sha256:" + "0" * 64
    with pytest.raises(BundleError, match=f"{saved} has digest sha256:.*not the pinned {other}"):
        ModelBundle.load(f"{saved}@{other}")
    with pytest.raises(BundleError, match="64 hex digits"):
        ModelBundle.load(f"{saved}@sha256:abc")


@pytest.mark.parametrize("name", [MANIFEST_NAME, WEIGHTS_NAME])
def test_one_flipped_bit_is_noticed(name: str, saved: Path) -> None:
    path = saved / name
    whole = path.read_bytes()

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, len(whole) - 1), st.integers(0, 7))
    def check(at: int, bit: int) -> None:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        with pytest.raises(BundleError, match=str(saved)):
            ModelBundle.load(str(saved))

    check()


@pytest.mark.parametrize("name", [MANIFEST_NAME, WEIGHTS_NAME])
def test_a_missing_file_is_named(name: str, saved: Path) -> None:
    (saved / name).unlink()
    with pytest.raises(BundleError, match=f"no model bundle at {saved}: {name} is missing"):
        ModelBundle.load(str(saved))


def test_a_cut_off_weights_file_is_refused(saved: Path) -> None:
    os.truncate(saved / WEIGHTS_NAME, 1000)
    with pytest.raises(BundleError, match=r"weights\.safetensors cannot be read"):
        ModelBundle.load(str(saved))


def test_intact_but_of_another_make(bundle: ModelBundle, tmp_path: Path) -> None:
    uri = str(tmp_path / "other")
    replace(bundle, classes=CLASSES[::-1]).save(uri)
    with pytest.raises(BundleError, match=r"tells platelet, .* bloodcells needs basophil"):
        ModelBundle.load(uri)
    replace(bundle, model_name="brain_of_a_haematologist").save(uri)
    with pytest.raises(BundleError, match="'brain_of_a_haematologist', which timm"):
        ModelBundle.load(uri)
    replace(bundle, model_name="test_resnet").save(uri)
    with pytest.raises(BundleError, match="are not those of a test_resnet"):
        ModelBundle.load(uri)


def test_a_later_format_is_refused(saved: Path) -> None:
    manifest = json.loads((saved / MANIFEST_NAME).read_text())
    (saved / MANIFEST_NAME).write_text(json.dumps(manifest | {"format": 2}))
    with pytest.raises(BundleError, match="has format 2, this version"):
        ModelBundle.load(str(saved))


def test_half_a_bundle_never_loads(
    bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``bundle.json`` comes last: whatever put fails before it, there is no bundle."""
    done: list[str] = []
    put = storage.put

    def failing_put(uri: str, data: bytes) -> None:
        if storage.name_of(uri) == MANIFEST_NAME:
            raise OSError("the power went")
        put(uri, data)
        done.append(storage.name_of(uri))

    monkeypatch.setattr(storage, "put", failing_put)
    with pytest.raises(OSError, match="the power went"):
        bundle.save(str(tmp_path / "half"))
    assert set(done) == {WEIGHTS_NAME, CARD_NAME}
    with pytest.raises(BundleError, match=r"bundle\.json is missing"):
        ModelBundle.load(str(tmp_path / "half"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"review_below": 1.5},
        {"confusion": np.eye(7, dtype=int)},
        {"confusion": -np.eye(8, dtype=int)},
        {"train_counts": np.ones(8)},
    ],
    ids=str,
)
def test_calibration_is_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(calibration(), **wrong)


def test_the_shipped_bundle() -> None:
    bundle = ModelBundle.load(shipped_bundle_uri())
    files = [path for path in Path(shipped_bundle_uri()).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20_000_000
    assert bundle.elsewhere and bundle.elsewhere.detector
    card = Path(shipped_bundle_uri(), CARD_NAME).read_text()
    for wanted in ("research use", "CC BY 4.0", "Acevedo", "Apache-2.0", bundle.digest):
        assert wanted in card
    confusion = bundle.calibration.confusion
    assert confusion.trace() / confusion.sum() > 0.98
    assert bundle.facts["validation"]["num_images"] == confusion.sum()
    assert bundle.calibration.train_counts.min() > 300
