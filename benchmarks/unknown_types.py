"""Each cell type left out of a short training in turn: is it recognised as unknown?

The shipped bundle knows all eight, so it cannot be asked; small trainings of the same kind are:
pictures of 64 px, the default augmentation, Lion, a detector fitted as ``jobs.train`` fits it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lion_pytorch import Lion
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from benchmarks.lab_cells import Cells, read_home
from bloodcells.augment import Augmentation, are_strangers, augment, image_keys
from bloodcells.augment.geometry import with_margin
from bloodcells.cells import CLASSES
from bloodcells.detector import Detector, FeatureTap
from bloodcells.imaging import Picture, Preprocess, Tone, decode_batch
from bloodcells.models import for_inference, start_model
from bloodcells.models.classifier import Classifier

PREPROCESS = Preprocess(size=64, crop=0.65, tone=Tone())
NUM_TRAINED, EPOCHS, BATCH = 3000, 5, 64
LEARNING_RATE = 3e-4

Pixels = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]


def unknown_types(folder: Path) -> dict[str, Any]:
    """Train without each type in turn; returns AUCs on ``val``, type by type, and their mean."""
    rng = np.random.default_rng(0)
    train, val = read_home(folder, "train"), read_home(folder, "val")
    train = train.take(rng.permutation(len(train.labels))[:NUM_TRAINED])
    fields, shown = _decoded(train, with_margin(PREPROCESS)), _decoded(train, PREPROCESS)
    held = _decoded(val, PREPROCESS)
    aucs: dict[str, float] = {}
    for left_out, name in enumerate(CLASSES):
        known = np.flatnonzero(train.labels != left_out)
        model = for_inference(_trained(fields[known], train.labels[known]))
        others = val.labels != left_out
        detector, _, _ = Detector.fit(
            _features(model, shown[known]),
            train.labels[known],
            _features(model, held[others]),
        )
        strange = detector.strangeness(torch.from_numpy(_features(model, held))).numpy()
        aucs[name] = float(roc_auc_score(~others, strange))
        print(f"{name} left out: AUC {aucs[name]:.3f}")
    mean = float(np.mean(list(aucs.values())))
    print(f"each type left out in turn: mean AUC {mean:.3f}")
    return {"mean": mean, "types": aucs, "num_trained": NUM_TRAINED, "epochs": EPOCHS}


def _decoded(cells: Cells, preprocess: Preprocess) -> Pixels:
    pictures = decode_batch(cells.images, preprocess, num_threads=2)
    return np.stack([picture.pixels for picture in pictures if isinstance(picture, Picture)])


def _trained(fields: Pixels, labels: IntArray) -> Classifier:
    """Train a classifier on fields with a margin, ``uint8 (N, M, M, 3)``."""
    torch.manual_seed(0)
    model, _ = start_model("tf_efficientnet_lite0")
    model.to(memory_format=torch.channels_last).train()
    optimizer = Lion(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    steps = len(labels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps * EPOCHS, cycle_momentum=False
    )
    settings, ids = Augmentation(), np.arange(len(labels), dtype=np.uint64)
    for epoch in range(EPOCHS):
        order = np.random.default_rng(epoch).permutation(len(labels))
        for step in range(steps):
            rows = order[step * BATCH : (step + 1) * BATCH]
            keys = image_keys(0, epoch, ids[rows], np.zeros(len(rows), np.int64))
            views = augment(torch.from_numpy(fields[rows]), PREPROCESS.size, settings, keys)
            tone = PREPROCESS.tone or Tone()
            pixels = torch.from_numpy(np.stack([tone.apply(view) for view in views.numpy()]))
            targets = functional.one_hot(torch.from_numpy(labels[rows]), len(CLASSES)).float()
            targets[torch.from_numpy(are_strangers(settings, keys))] = 1 / len(CLASSES)
            loss = functional.cross_entropy(model(pixels), targets, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model


def _features(model: Classifier, pixels: Pixels) -> npt.NDArray[np.float32]:
    tap = FeatureTap(model)
    found = []
    with torch.inference_mode():
        for start in range(0, len(pixels), BATCH):
            model(torch.from_numpy(pixels[start : start + BATCH]))
            found.append(tap.last.float().numpy())
    return np.concatenate(found)
