"""What the contenders' scripts share: flags, the model, and the table they leave."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from bloodcells.bundle import ModelBundle
from bloodcells.cells import CLASSES
from bloodcells.models import for_inference

BATCH_SIZE = 32


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the flags that every script has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--bundle", required=True, help="folder of the model bundle")
    parser.add_argument("--out", required=True, type=Path, help="folder for the table")
    return parser


def load_model(bundle: str, *, folded: bool = False) -> nn.Module:
    """Build the bundle's classifier: eager and ``channels_last``, as a careful person would.

    Args:
        bundle: folder of the bundle.
        folded: with :func:`bloodcells.models.for_inference`, as this project runs it.
    """
    model = ModelBundle.load(bundle).build()
    if folded:
        return for_inference(model)
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def write_table(
    out: Path, images: Sequence[str], logits: Sequence[npt.NDArray[np.float32]]
) -> None:
    """Write one row an image: its name, class and confidence."""
    exp = np.exp(np.concatenate(logits))
    probabilities = exp / exp.sum(axis=1, keepdims=True)
    table = pa.table(
        {
            "image": list(images),
            "predicted_class": [CLASSES[k] for k in probabilities.argmax(axis=1)],
            "confidence": probabilities.max(axis=1),
        }
    )
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, out / "classes.parquet")
