"""What every contender works on: the same JPEG files, the same pixels, the same weights."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.contenders import Material
from bloodcells.bundle import Calibration, ModelBundle
from bloodcells.cells import CLASSES
from bloodcells.errors import ConfigurationError
from bloodcells.imaging import Preprocess, decode
from bloodcells.models import Classifier, create_model
from bloodcells.records import Record, Shard
from bloodcells.stores import open_store, plan_source, read_shard

SIZE_PX = 96
SHIPPED_WEIGHTS = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Material of two or more sizes, on disk."""

    folder: Path
    pixels: Path
    bundle: Path

    def of(self, num_images: int) -> Material:
        """Return the material of the first ``num_images`` images."""
        return Material(
            folder=self.folder / str(num_images),
            pixels=self.pixels,
            num_images=num_images,
            bundle=self.bundle,
        )


def prepare(stores: Sequence[str], sizes: Sequence[int], model: str, work: Path) -> Prepared:
    """Write the first JPEGs of some stores as files and as pixels, and a bundle, into ``work``.

    Where the stores hold fewer than the largest size, their JPEGs are written again as others.

    Args:
        stores: URIs of stores.
        sizes: numbers of images; each gets a folder of the first so many, hard links of one
            another.
        model: a timm architecture.
        work: an empty folder.

    Raises:
        ConfigurationError: the stores hold no JPEG.
        BloodcellsError: a store cannot be read.
    """
    preprocess = Preprocess(size=SIZE_PX, crop=1.0)
    largest = max(sizes)
    pixels = np.empty((largest, SIZE_PX, SIZE_PX, 3), np.uint8)
    count = 0
    for record in itertools.islice(_cycled(stores), largest):
        assert isinstance(record.data, bytes)
        pixels[count] = decode(record.data, preprocess).pixels
        # A name of our own: what an archive calls its members is never used as a path.
        place = Path(record.member.label or "unlabelled") / f"{count:06d}.jpg"
        _write_and_link(work / "images", place, record.data, [n for n in sizes if count < n])
        count += 1
    if count < largest:
        raise ConfigurationError(f"{', '.join(stores)}: no JPEG image")
    np.save(work / "pixels.npy", pixels)
    _make_bundle(model, preprocess, pixels).save(str(work / "bundle"))
    return Prepared(folder=work / "images", pixels=work / "pixels.npy", bundle=work / "bundle")


def _cycled(stores: Sequence[str]) -> Iterator[Record]:
    """Yield the stores' JPEGs again and again; nothing where there are none."""
    while (first := next(images := jpegs(stores), None)) is not None:
        yield first
        yield from images


def jpegs(stores: Sequence[str]) -> Iterator[Record]:
    for source in open_store(stores).sources():
        for item in plan_source(source):
            if isinstance(item, Shard):
                yield from (record for record in read_shard(item) if _is_jpeg(record))


def _is_jpeg(record: Record) -> bool:
    return isinstance(record.data, bytes) and record.data.startswith(b"\xff\xd8\xff")


def _write_and_link(folder: Path, place: Path, data: bytes, sizes: Sequence[int]) -> None:
    first, *others = [folder / str(num_images) / place for num_images in sizes]
    first.parent.mkdir(parents=True, exist_ok=True)
    first.write_bytes(data)
    for other in others:
        other.parent.mkdir(parents=True, exist_ok=True)
        os.link(first, other)


def _make_bundle(
    name: str, preprocess: Preprocess, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> ModelBundle:
    """Make a bundle to time, not to trust: ImageNet's weights where installed, else random ones."""
    torch.manual_seed(0)
    is_shipped = name in SHIPPED_WEIGHTS
    model = create_model(name, pretrained=is_shipped)
    if not is_shipped:
        _settle_batch_norms(model, torch.from_numpy(pixels[:64]))
    num = len(CLASSES)
    calibration = Calibration(
        temperature=1.0,
        confusion=np.eye(num, dtype=np.int64) * 100,
        train_counts=np.full(num, 100),
        review_below=0.5,
    )
    return ModelBundle(
        model_name=name,
        preprocess=preprocess,
        calibration=calibration,
        state_dict=model.state_dict(),
        facts={"pretraining": "none that matters: made to be timed by benchmarks/bulk.py"},
    )


def _settle_batch_norms(model: Classifier, pixels: torch.Tensor) -> None:
    """Set running statistics from real pixels.

    Without, activations of random weights die out or overflow in a deep model, and arithmetic on
    denormals or NaNs takes another time than arithmetic on numbers.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over all batches seen
    model.train()
    with torch.no_grad():
        for start in range(0, len(pixels), 16):
            model(pixels[start : start + 16])
    model.eval()
