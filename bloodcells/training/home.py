"""What a bundle is told of the lab it was trained in: how its pictures look, and what they are not.

The pictures are read once more, whole and unchanged, on the road of scoring. Knows nothing of how
the model was trained.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from bloodcells.bundle import ModelBundle
from bloodcells.detector import Detector, FeatureTap, Seen
from bloodcells.imaging import Preprocess
from bloodcells.models import for_inference
from bloodcells.sites import SIDE_PX, HomeReference, measure
from bloodcells.training.ingest import ImageSet, load_images

MOST_MEASURED: Final = 2000
"""Pictures that the rulers are laid on, and as many that the detector learns from."""

_BATCH: Final = 64

Floats = npt.NDArray[np.float32]


def with_home(
    bundle: ModelBundle, train_rows: pa.Table, held_out: pa.Table, source: str
) -> ModelBundle:
    """Return a bundle that knows its home and tells strangers.

    Args:
        bundle: trained and calibrated.
        train_rows: manifest rows of its training images.
        held_out: of images that it was not trained on.
        source: the dataset, for messages.

    Raises:
        StoreError: an image is no longer what it was when the dataset was prepared.
        StorageError: a store is out of reach.
    """
    known = some_rows(train_rows, MOST_MEASURED)
    home = learn_home(pa.concat_tables([known, held_out]), source)
    images = load_images(known, bundle.preprocess, source)[0]
    others = load_images(held_out, bundle.preprocess, source)[0]
    seen, unknown = (features_of(bundle, each)[0] for each in (images, others))
    detector, limits = Detector.fit(seen, images.labels, unknown)
    return replace(
        bundle,
        home=home,
        detector=detector,
        calibration=replace(
            bundle.calibration,
            strange_above=limits.strange_above,
            strange_typical=limits.typical,
            novel_above=limits.novel_above,
        ),
    )


def learn_home(rows: pa.Table, source: str) -> HomeReference:
    """Lay the rulers on the pictures of manifest rows."""
    images = load_images(rows, Preprocess(size=SIDE_PX), source)[0]
    everything = np.arange(len(images.labels))
    measures = np.concatenate(
        [
            np.stack([measure(picture) for picture in images.pixels.take(part)])
            for part in np.array_split(everything, max(1, len(everything) // _BATCH))
        ]
    )
    return HomeReference.learn(measures, images.labels)


def features_of(bundle: ModelBundle, images: ImageSet) -> tuple[Seen, Floats]:
    """Return what a bundle's classifier sees of images, and logits ``float32 (N, 8)``."""
    model = for_inference(bundle.build())
    tap = FeatureTap(model)
    seen, logits = [], []
    with torch.inference_mode():
        for start in range(0, len(images.labels), _BATCH):
            rows = np.arange(start, min(start + _BATCH, len(images.labels)))
            logits.append(model(torch.from_numpy(images.pixels.take(rows))).numpy())
            seen.append(tap.seen())
    return Seen.together(seen), np.concatenate(logits)


def some_rows(rows: pa.Table, most: int) -> pa.Table:
    """Choose rows by their content, the same ones in whatever order they come."""
    return rows.take(pc.sort_indices(rows["content_hash"]))[:most]
