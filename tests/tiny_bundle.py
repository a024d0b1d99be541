"""A bundle of timm's smallest network: for tests of how pictures travel, not of what they show."""

from __future__ import annotations

import numpy as np
import torch

from bloodcells.bundle import Calibration, ModelBundle, shipping_precision
from bloodcells.imaging import Preprocess
from bloodcells.models import create_model

TINY_MODEL = "test_efficientnet"
"""0.4 M parameters, made for tests."""


def untrained() -> ModelBundle:
    """Return a bundle that has learned nothing and knows no home; always the same one."""
    torch.manual_seed(1)
    return ModelBundle(
        model_name=TINY_MODEL,
        preprocess=Preprocess(size=64, crop=0.65),
        calibration=Calibration(
            temperature=1.0,
            confusion=np.eye(8, dtype=np.int64),
            train_counts=np.ones(8, np.int64),
            review_below=0.9,
        ),
        state_dict=shipping_precision(create_model(TINY_MODEL).state_dict()),
        facts={"data": None},
    )
