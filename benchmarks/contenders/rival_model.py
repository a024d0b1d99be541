"""What the serving recipes share: Pillow, the eager model, and the answer that all give.

The answer has the shape of our endpoint's, so that everybody writes as much JSON.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks.contenders.script import load_model
from bloodcells.bundle import ModelBundle
from bloodcells.cells import CLASSES


class RivalModel:
    """The bundle's model as a careful person would write a server around it.

    Args:
        bundle: folder of the model bundle.
    """

    def __init__(self, bundle: str) -> None:
        self.model = load_model(bundle)
        loaded = ModelBundle.load(bundle)
        self.preprocess = loaded.preprocess
        self.temperature = loaded.calibration.temperature

    def decode(self, data: bytes) -> npt.NDArray[np.uint8]:
        """Return the centre of an image as the model wants it, ``uint8 (S, S, 3)``."""
        side = self.preprocess.size
        with Image.open(io.BytesIO(data)) as opened:
            image = opened.convert("RGB")
        cut = round(min(image.size) * self.preprocess.crop)
        left, top = (image.width - cut) // 2, (image.height - cut) // 2
        box = (left, top, left + cut, top + cut)
        picture = np.array(image.resize((side, side), Image.Resampling.BILINEAR, box=box))
        tone = self.preprocess.tone
        return tone.apply(picture) if tone else picture

    def classify(self, pictures: Sequence[npt.NDArray[np.uint8]]) -> list[dict[str, Any]]:
        """Return the answer for each picture of a batch."""
        with torch.inference_mode():
            logits = self.model(torch.from_numpy(np.stack(pictures)))
            probabilities = (logits / self.temperature).softmax(dim=1)
        return [_answer(row) for row in probabilities.tolist()]


def _answer(probabilities: list[float]) -> dict[str, Any]:
    confidence = max(probabilities)
    image = {
        "predicted_class": CLASSES[probabilities.index(confidence)],
        "confidence": confidence,
        "probabilities": dict(zip(CLASSES, probabilities, strict=True)),
    }
    return {"images": [image]}
