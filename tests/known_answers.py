"""Images that a server is asked for in tests of the benchmarks, and what it should say of them."""

from __future__ import annotations

import json

import numpy as np

from benchmarks.answers import Answer, Judgement
from bloodcells.cells import CLASSES

IMAGES = [b"image-%d" % k * 50 for k in range(4)]
EXPECTED = np.full((len(IMAGES), 8), 0.04, np.float32)
EXPECTED[range(4), range(4)] = 0.72
STRICT = Judgement(expected=EXPECTED, tolerance=1e-3)


def right(image: int) -> bytes:
    named = dict(zip(CLASSES, EXPECTED[image].tolist(), strict=True))
    return json.dumps(
        {"images": [{"predicted_class": CLASSES[image], "probabilities": named}]}
    ).encode()


def answer(began: float, ms: float, image: int = 0, status: int = 200) -> Answer:
    body = right(image) if status == 200 else b""
    return Answer(image=image, began=began, ended=began + ms / 1000, status=status, body=body)
