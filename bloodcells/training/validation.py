"""Validation shared by the ranks: every image on exactly one, all figures on all of them."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
from scipy.special import log_softmax, softmax

from bloodcells.cells import CLASSES
from bloodcells.evaluation import Tally
from bloodcells.models import Classifier, for_inference
from bloodcells.training.ingest import ImageSet
from bloodcells.training.sampling import own_rows

_BATCH: Final = 128


def logits_of(
    model: Classifier, images: ImageSet, rank: int, world_size: int
) -> npt.NDArray[np.float32]:
    """Classify all images, striped over the ranks; every rank gets all logits.

    Returns:
        ``float32 (N, 8)``, in the order of ``images``.
    """
    fast = for_inference(model)
    device = model.scale.device
    own = own_rows(len(images.labels), rank, world_size)
    logits = np.zeros((len(images.labels), len(CLASSES)), np.float32)
    with torch.inference_mode():
        for start in range(0, len(own), _BATCH):
            rows = own[start : start + _BATCH]
            pixels = torch.from_numpy(images.pixels.take(rows)).to(device)
            logits[rows] = fast(pixels).cpu().numpy()
    if world_size > 1:
        shared = torch.from_numpy(logits).to(device)
        torch.distributed.all_reduce(shared)  # every row is zero on all ranks but one
        logits = shared.cpu().numpy()
    return logits


def figures_of(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return ``val_loss`` (cross-entropy), ``val_accuracy`` and ``val_macro_f1``.

    Args:
        logits: ``float32 (N, 8)``.
        labels: ``int64 (N,)``.
    """
    likelihood = log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    tally = Tally()
    tally.add(labels, logits.argmax(1), softmax(logits, axis=1).max(1))
    evaluation = tally.evaluation()
    assert evaluation is not None, "there are no validation images"
    return {
        "val_loss": float(-likelihood.mean()),
        "val_accuracy": evaluation.accuracy.value,
        "val_macro_f1": evaluation.macro_f1,
    }
