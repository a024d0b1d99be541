"""What a bundle says of itself, without its weights: all that the driver of a run needs to know.

A driver that held torch and a model zoo for it would take a gigabyte before the first image. So a
process of its own verifies the bundle, weights and all, and tells what it found.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bloodcells import errors
from bloodcells.cells import CLASSES
from bloodcells.errors import BloodcellsError, BundleError
from bloodcells.imaging import Preprocess
from bloodcells.sites.home import HomeReference
from bloodcells.sites.profile import SiteProfile


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """What held-out images say about a classifier's output.

    Attributes:
        temperature: logits are divided by it before the softmax.
        confusion: ``int64 (8, 8)``, rows true class, columns predicted, images that the weights
            were not trained on.
        train_counts: ``int64 (8,)``, distinct training images of each class.
        review_below: a cell is to be looked at by a person where its calibrated confidence is
            less; 1 for every cell, however sure.
        strange_above: an image is out of domain where its strangeness is more; ``None`` where the
            bundle has no detector.
        strange_typical: median strangeness of home pictures.
        novel_above: an image is out of domain where its novelty is more, whatever its strangeness;
            ``None`` where that is not known, and in every other lab than home.
    """

    temperature: float
    confusion: npt.NDArray[np.int64]
    train_counts: npt.NDArray[np.int64]
    review_below: float
    strange_above: float | None = None
    strange_typical: float | None = None
    novel_above: float | None = None

    def __post_init__(self) -> None:
        """Check ranges and shapes, and make the arrays read-only."""
        num = len(CLASSES)
        for name, shape in (("confusion", (num, num)), ("train_counts", (num,))):
            counts = np.array(getattr(self, name))
            if counts.shape != shape or counts.dtype.kind not in "iu" or (counts < 0).any():
                raise ValueError(f"{name} must be counts of shape {shape}")
            counts = counts.astype(np.int64)
            counts.flags.writeable = False
            object.__setattr__(self, name, counts)
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be a positive number, not {self.temperature}")
        if not 0 <= self.review_below <= 1:
            raise ValueError(f"review_below must lie between 0 and 1, not {self.review_below}")

    def at(self, site: SiteProfile | None) -> Calibration:
        """Return the calibration as a site's profile has it."""
        if site is None or site.changes_nothing:
            return self
        above = self.strange_above if site.strange_above is None else site.strange_above
        return replace(
            self,
            temperature=self.temperature * site.temperature,
            strange_above=above,
            novel_above=None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        known: dict[str, Any] = {}
        if self.strange_above is not None:
            known |= {
                "strange_above": self.strange_above,
                "strange_typical": self.strange_typical,
            }
        if self.novel_above is not None:
            known["novel_above"] = self.novel_above
        return known | {
            "temperature": self.temperature,
            "confusion": self.confusion.tolist(),
            "train_counts": self.train_counts.tolist(),
            "review_below": self.review_below,
        }


@dataclass(frozen=True, kw_only=True)
class BundleFacts:
    """A verified bundle without its weights; see ``bundle.ModelBundle``.

    Attributes:
        model_name: the architecture.
        preprocess: how an image becomes pixels.
        calibration: what held-out images say about it.
        digest: over the weights and everything else but the model card.
        home: what the training lab's pictures look like; ``None`` where the bundle does not know.
        measured: what it is known to do with other pictures than its home's: mappings of ``what``,
            ``figure``, ``value``, and ``low`` and ``high`` of the 95 % interval where there is one.
    """

    model_name: str
    preprocess: Preprocess
    calibration: Calibration
    digest: str
    home: HomeReference | None = None
    measured: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> BundleFacts:
        """Build from a bundle's manifest that was verified."""
        return cls(
            model_name=manifest["model_name"],
            preprocess=Preprocess.from_dict(manifest["preprocess"]),
            calibration=Calibration(**manifest["calibration"]),
            digest=manifest["digest"],
            home=home_of(manifest),
            measured=manifest["facts"].get("measured", ()),
        )


def home_of(manifest: Mapping[str, Any]) -> HomeReference | None:
    """Return what a bundle's manifest says of its home; older ones say nothing."""
    return HomeReference.from_dict(manifest["home"]) if "home" in manifest else None


def verified_apart(uri: str) -> BundleFacts:
    """Have a bundle verified by a process of its own, as ``ModelBundle.load`` does it.

    Args:
        uri: the bundle's folder, or ``URI@sha256:…``.

    Raises:
        BundleError: what ``ModelBundle.load`` raises, or the process ended without an answer.
        StorageError: the place cannot be reached.
    """
    asked = subprocess.run(
        [sys.executable, "-m", "bloodcells.bundle", uri],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    if asked.returncode:
        raise BundleError(
            f"the process that was to verify the bundle at {uri} ended with code "
            f"{asked.returncode}; it may need more memory than there is"
        )
    answer = json.loads(asked.stdout)
    if "error" in answer:
        kind = getattr(errors, answer["error"], BundleError)
        raise kind(answer["message"]) if issubclass(kind, BloodcellsError) else BundleError(answer)
    return BundleFacts.of(answer)


def shipped_bundle_uri() -> str:
    """Return the URI of the bundle that comes with the package."""
    return str(Path(__file__).parent / "shipped" / "pbc-lite0-128")
