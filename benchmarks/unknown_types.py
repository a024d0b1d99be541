"""Each cell type left out of a training in turn: is it recognised as unknown?

The shipped bundle knows all eight, so it cannot be asked; shorter trainings are: pictures of 96 px,
0.6 of the default augmentation, Lion, a detector fitted as ``jobs.train`` fits it. Weights are kept
in a folder, and found there again.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lion_pytorch import Lion
from scipy.special import softmax
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from benchmarks.lab_cells import Cells, read_home
from bloodcells.augment import Augmentation, are_strangers, augment, image_keys
from bloodcells.augment.geometry import with_margin
from bloodcells.cells import CLASSES
from bloodcells.detector import Detector, FeatureTap, Seen
from bloodcells.imaging import Picture, Preprocess, Tone, decode_batch
from bloodcells.models import create_model, for_inference, start_model
from bloodcells.models.classifier import Classifier

PREPROCESS = Preprocess(size=96, crop=0.65, tone=Tone())
NUM_TRAINED, EPOCHS, BATCH = 3000, 5, 64
LEARNING_RATE = 1e-4
AUGMENTATION = replace(Augmentation().scaled(0.6), strangers=0.0)
RECIPE = hashlib.sha256(
    repr((PREPROCESS, NUM_TRAINED, EPOCHS, BATCH, LEARNING_RATE, AUGMENTATION)).encode()
).hexdigest()[:12]
"""Weights that are kept are those of the same training."""

Pixels = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]


def unknown_types(folder: Path, work: Path) -> dict[str, Any]:
    """Train without each type in turn; returns AUCs on ``val``, type by type, and their means.

    Args:
        folder: the PBC cells.
        work: where weights are kept.
    """
    rng = np.random.default_rng(0)
    train, val = read_home(folder, "train"), read_home(folder, "val")
    train = train.take(rng.permutation(len(train.labels))[:NUM_TRAINED])
    fields, shown = _decoded(train, with_margin(PREPROCESS)), _decoded(train, PREPROCESS)
    held = _decoded(val, PREPROCESS)
    types: dict[str, dict[str, float]] = {}
    for left_out, name in enumerate(CLASSES):
        known = np.flatnonzero(train.labels != left_out)
        model = for_inference(
            _kept(work / f"{RECIPE}-without-{name}.pt", fields[known], train.labels[known])
        )
        others = val.labels != left_out
        seen, logits = _seen(model, held)
        known_seen, _ = _seen(model, shown[known])
        detector, _ = Detector.fit(
            known_seen, train.labels[known], Seen(seen.last[others], seen.early[others])
        )
        assert detector.types is not None
        scores = {
            "novelty": detector.types.novelty(torch.from_numpy(seen.early)).numpy(),
            "strangeness": detector.strangeness(torch.from_numpy(seen.last)).numpy(),
            "unsureness": 1 - softmax(logits, axis=1).max(axis=1),
        }
        types[name] = {kind: float(roc_auc_score(~others, each)) for kind, each in scores.items()}
        types[name]["accuracy_of_others"] = float((logits.argmax(1) == val.labels)[others].mean())
        print(f"{name} left out: AUC " + ", ".join(f"{k} {v:.3f}" for k, v in types[name].items()))
    means = {kind: float(np.mean([each[kind] for each in types.values()])) for kind in scores}
    print(
        "each type left out in turn, mean AUC: "
        + ", ".join(f"{k} {v:.3f}" for k, v in means.items())
    )
    return {
        "mean": means["novelty"],
        "means": means,
        "types": types,
        "num_trained": NUM_TRAINED,
        "epochs": EPOCHS,
    }


def _kept(path: Path, fields: Pixels, labels: IntArray) -> Classifier:
    """Return the classifier whose weights are kept, or train it and keep them."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(_trained(fields, labels).state_dict(), path)
    model = create_model("tf_efficientnet_lite0")
    model.load_state_dict(torch.load(path))
    return model.eval()


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
    settings, ids = AUGMENTATION, np.arange(len(labels), dtype=np.uint64)
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


def _seen(model: Classifier, pixels: Pixels) -> tuple[Seen, npt.NDArray[np.float32]]:
    tap = FeatureTap(model)
    seen, logits = [], []
    with torch.inference_mode():
        for start in range(0, len(pixels), BATCH):
            logits.append(model(torch.from_numpy(pixels[start : start + BATCH])).numpy())
            seen.append(tap.seen())
    return Seen.together(seen), np.concatenate(logits)
