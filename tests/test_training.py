"""Training: agreed steps, honest calibration, a bundle from labelled stores by two workers."""

from __future__ import annotations

import hashlib
import json
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.special import log_softmax, softmax

from bloodcells.bundle import ModelBundle
from bloodcells.cells import CLASSES
from bloodcells.errors import ConfigurationError, NotFoundError, StoreError
from bloodcells.imaging import Preprocess, decode
from bloodcells.synthetic import draw_cell
from bloodcells.training import Recipe, load_labelled
from bloodcells.training.calibration import calibrate, fit_temperature, review_threshold
from bloodcells.training.ingest import with_margin
from bloodcells.training.sampling import epoch_batches, images_per_epoch, own_rows
from jobs.train import TrainConfig, train

PER_CLASS = 12


def jpeg(cell_type: str, seed: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(draw_cell(cell_type, seed)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of labelled cells, with an unlabelled one and one that cannot be decoded."""
    path = tmp_path_factory.mktemp("labelled") / "cells.tar"
    members = {
        f"{cell_type}/{i}.jpg": jpeg(cell_type, i)
        for cell_type in CLASSES
        for i in range(PER_CLASS)
    }
    members |= {"loose.jpg": jpeg("basophil", 99), "basophil/torn.jpg": jpeg("basophil", 98)[:500]}
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    return path


# Sampling --------------------------------------------------------------------------------------

counts_a_class = st.lists(st.integers(1, 40), min_size=2, max_size=5)


@given(counts_a_class, st.integers(1, 4), st.integers(2, 32), st.floats(0, 1))
def test_all_ranks_take_the_same_steps_and_share_the_epoch(
    counts: list[int], world_size: int, batch_size: int, balance: float
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    batches = epoch_batches(
        labels, balance=balance, batch_size=batch_size, world_size=world_size, seed=1, epoch=2
    )
    shown = images_per_epoch(np.array(counts), balance)
    per_rank = max(1, batch_size // world_size)
    assert batches.shape == (
        world_size,
        max(1, shown.sum() // (per_rank * world_size)),
        per_rank,
    )
    if batches.size <= shown.sum():
        used = np.bincount(batches.ravel(), minlength=len(labels))
        for label, (num, wanted) in enumerate(zip(counts, shown, strict=True)):
            assert used[labels == label].max() <= -(-wanted // num)


def test_balance() -> None:
    counts = np.array([100, 25])
    assert images_per_epoch(counts, 0).tolist() == [100, 25]
    assert images_per_epoch(counts, 0.5).tolist() == [100, 50]
    assert images_per_epoch(counts, 1).tolist() == [100, 100]


def test_epochs_differ_and_seeds_repeat() -> None:
    labels = np.repeat([0, 1], 50)

    def batches(seed: int, epoch: int) -> list[int]:
        drawn = epoch_batches(
            labels, balance=0, batch_size=10, world_size=2, seed=seed, epoch=epoch
        )
        return drawn.ravel().tolist()

    assert batches(1, 0) == batches(1, 0)
    assert batches(1, 0) != batches(1, 1)
    assert batches(1, 0) != batches(2, 0)
    assert sorted(batches(1, 0)) == list(range(100))


@given(st.integers(0, 50), st.integers(1, 5))
def test_every_validation_row_is_on_exactly_one_rank(num_rows: int, world_size: int) -> None:
    rows = np.concatenate([own_rows(num_rows, rank, world_size) for rank in range(world_size)])
    assert sorted(rows.tolist()) == list(range(num_rows))


# Calibration -----------------------------------------------------------------------------------


def drawn_logits(num: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits ``sharpness`` times too sure of labels that are drawn from them."""
    rng = np.random.default_rng(5)
    honest = rng.normal(0, 2, (num, 8))
    labels = np.array([rng.choice(8, p=p) for p in softmax(honest, axis=1)])
    return (honest * sharpness).astype(np.float32), labels


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_overconfidence(sharpness: float) -> None:
    logits, labels = drawn_logits(5000, sharpness)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(sharpness, rel=0.06)

    def loss(t: float) -> float:
        return -float(log_softmax(logits / t, axis=1)[np.arange(5000), labels].mean())

    assert loss(temperature) <= min(loss(temperature * 1.02), loss(temperature / 1.02))


def test_calibration_counts_what_was_confused() -> None:
    logits, labels = drawn_logits(2000, 2)
    calibration, evaluation = calibrate(logits, labels, np.arange(1, 9))
    assert calibration.confusion.sum() == 2000
    assert (calibration.confusion.sum(1) == np.bincount(labels, minlength=8)).all()
    assert np.trace(calibration.confusion) == (logits.argmax(1) == labels).sum()
    assert evaluation.reliability.expected_error < 0.03


def test_review_threshold() -> None:
    confidence = np.array([0.99, 0.9, 0.8, 0.7, 0.6])
    right = np.array([True, True, False, True, False])
    assert review_threshold(confidence, right, 0.0) == 0.9
    assert review_threshold(confidence, right, 0.25) == 0.7  # one wrong of four
    assert review_threshold(confidence, right, 1.0) == 0.6
    assert review_threshold(confidence[:1], right[2:3], 0.005) == 1.0


# Ingest ----------------------------------------------------------------------------------------


def test_margin_keeps_the_scale() -> None:
    field = with_margin(Preprocess(size=96, crop=0.5))
    assert field.crop == pytest.approx(0.775)
    assert field.size / field.crop == pytest.approx(96 / 0.5, rel=0.01)
    assert with_margin(Preprocess(size=96, crop=0.8)).crop == 1


def test_ingest_reads_labelled_images_once(archive: Path, ray_cluster: None) -> None:
    preprocess = Preprocess(size=32, crop=0.7)
    data = load_labelled([str(archive)], preprocess)
    assert len(data.labels) == len(CLASSES) * PER_CLASS
    assert data.left_out == {"without label": 1, "unreadable": 1}
    assert data.counts(validation=True).tolist() == [1] * 8
    assert data.counts(validation=False).tolist() == [PER_CLASS - 1] * 8
    pixels = np.concatenate(ray.get(list(data.blocks)))
    assert pixels.shape == (96, with_margin(preprocess).size, with_margin(preprocess).size, 3)
    validation = np.concatenate(ray.get(list(data.validation_blocks)))
    labels = data.labels[data.is_validation]
    hashes = np.array(data.content_hashes)[data.is_validation]
    with tarfile.open(archive) as tar:
        for member in tar:
            encoded = tar.extractfile(member).read()
            at = np.flatnonzero(hashes == hashlib.sha256(encoded).hexdigest())
            if len(at):
                assert np.array_equal(validation[at[0]], decode(encoded, preprocess).pixels)
                assert member.name.startswith(CLASSES[labels[at[0]]])


def test_ingest_honours_splits(archive: Path, ray_cluster: None) -> None:
    splits = {
        ("cells.tar", f"{cell_type}/{i}.jpg"): "val" if i == 3 else "train"
        for cell_type in CLASSES
        for i in range(6)
    }
    data = load_labelled([str(archive)], Preprocess(size=16), splits)
    assert data.counts(validation=False).tolist() == [5] * 8
    assert data.counts(validation=True).tolist() == [1] * 8
    assert data.left_out["in neither split"] == 6 * 8 + 1


def test_a_store_that_cannot_be_trained_on(tmp_path: Path, ray_cluster: None) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "one.jpg").write_bytes(jpeg("monocyte", 1))
    with pytest.raises(StoreError, match=r"nothing to train on \(1 without label\).*named after"):
        load_labelled([str(tmp_path)], Preprocess())
    (tmp_path / "monocyte").mkdir()
    for i in range(3):
        (tmp_path / "monocyte" / f"{i}.jpg").write_bytes(jpeg("monocyte", i))
    with pytest.raises(StoreError, match="no training image of basophil, eosinophil"):
        load_labelled([str(tmp_path)], Preprocess())


# The job ---------------------------------------------------------------------------------------


def config(archive: Path, out: Path, **more: object) -> TrainConfig:
    settings = {"epochs": 1, "size": 32, "model": "tf_efficientnet_lite0", "num_workers": 2}
    return TrainConfig(store=(str(archive),), out=str(out), **(settings | more))


def test_two_workers_make_a_bundle(archive: Path, tmp_path: Path, ray_cluster: None) -> None:
    bundle = train(config(archive, tmp_path / "one", about_data="drawn cells"))
    loaded = ModelBundle.load(str(tmp_path / "one"))
    assert loaded.digest == bundle.digest
    assert loaded.preprocess == Preprocess(size=32, crop=0.65)
    assert loaded.calibration.confusion.sum() == len(CLASSES)
    assert loaded.calibration.train_counts.tolist() == [PER_CLASS - 1] * 8
    assert loaded.facts["recipe"]["num_workers"] == 2
    json.dumps(loaded.facts)
    assert "drawn cells" in (tmp_path / "one" / "MODEL_CARD.md").read_text()
    again = train(config(archive, tmp_path / "two", about_data="drawn cells"))
    assert again.digest == bundle.digest, "the same seed makes the same bundle"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer": "sgd"}, "--optimizer sgd: choose one of lion, adamw"),
        ({"epochs": 0}, "--epochs must be 1 or more"),
        ({"num_workers": 0}, "--num-workers 0: give 1 or more"),
        ({"crop": 1.5}, "crop"),
    ],
    ids=str,
)
def test_settings_are_checked_before_anything_starts(
    wrong: dict[str, object], message: str, archive: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        config(archive, tmp_path / "out", **wrong)


def test_a_job_that_cannot_work(archive: Path, tmp_path: Path, ray_cluster: None) -> None:
    with pytest.raises(ConfigurationError, match="--model no_such_net"):
        train(config(archive, tmp_path / "out", model="no_such_net"))
    with pytest.raises(NotFoundError, match=r"nowhere\.csv"):
        train(config(archive, tmp_path / "out", splits=str(tmp_path / "nowhere.csv")))
    with pytest.raises(ConfigurationError, match="--num-workers 64"):
        train(config(archive, tmp_path / "out", num_workers=64))
    assert not (tmp_path / "out").exists()


def test_recipe_fills_in_the_optimizers_defaults() -> None:
    assert Recipe().to_dict()["learning_rate"] == 3e-4
    assert Recipe(optimizer="adamw", weight_decay=0.0).to_dict()["weight_decay"] == 0.0
