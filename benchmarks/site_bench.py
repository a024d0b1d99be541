"""What the parts of ``benchmarks.sites`` share: the bundle, how it judges, the labs, figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.lab_cells import Cells, read_lab
from bloodcells.bundle import ModelBundle
from bloodcells.cells import CLASSES
from bloodcells.scoring import Scorer
from bloodcells.site_search import make_profile, outputs_of
from bloodcells.sites import SiteProfile
from bloodcells.sites.sample import SAMPLE_SIZE
from bloodcells.verdicts import Verdicts, judge, oddness

LABS = {"bccd": "basophil", "chula": None}
"""The development labs, and the class of each that has too few cells to be measured."""

Encoded = bytes | npt.NDArray[np.uint8]
Figures = dict[str, Any]
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is measured, on what."""

    bundle: ModelBundle
    bundle_uri: str
    scorer: Scorer
    data: Path
    split: str
    work: Path

    def verdicts(self, images: Sequence[Encoded], site: SiteProfile | None = None) -> Verdicts:
        """Judge pictures as bulk scoring does."""
        outputs = outputs_of(images, self.scorer.at(site))
        return judge(outputs, self.bundle.calibration.at(site))

    def oddness(self, images: Sequence[Encoded], site: SiteProfile | None = None) -> np.ndarray:
        """Return by what pictures are told to be none of the eight types, ``float32 (N,)``."""
        outputs = outputs_of(images, self.scorer.at(site))
        return oddness(outputs, self.bundle.calibration.at(site))[0]

    def profile(self, images: Sequence[Encoded]) -> SiteProfile:
        """Make a profile of a sample, as ``--site auto`` does."""
        rows = np.random.default_rng(SEED).permutation(len(images))[:SAMPLE_SIZE]
        return make_profile([images[row] for row in rows], self.bundle)


def cells_of_lab(bench: Bench, name: str, left_out: str | None) -> Cells:
    """Return a development lab's cells, but for those of one class."""
    cells = read_lab(bench.data / "other_labs" / f"{name}.tar")
    if left_out is None:
        return cells
    return cells.take(np.flatnonzero(cells.labels != CLASSES.index(left_out)))


def classes_of(verdicts: Verdicts) -> npt.NDArray[np.int64]:
    """Return predicted classes as indices into ``CLASSES``, ``int64 (N,)``."""
    return np.array([CLASSES.index(name) for name in verdicts.predicted_class], np.int64)


def balanced(labels: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]) -> list[float]:
    """Return balanced accuracy over the classes there are, with a bootstrap interval by cell."""
    rng = np.random.default_rng(SEED)
    right = predicted == labels
    classes = np.unique(labels)
    value = float(np.mean([right[labels == k].mean() for k in classes]))
    drawn = [
        np.mean([rng.choice(right[labels == k], (labels == k).sum()).mean() for k in classes])
        for _ in range(1000)
    ]
    return [value, *(float(v) for v in np.quantile(drawn, [0.025, 0.975]))]
