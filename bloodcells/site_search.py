"""A site profile from a sample of a lab's pictures, without a label.

A robust model is unsure of cells that are too large, too small or too faint for it, and surest
where they look as they did in its training; on simulated labs that finds nearly the crop that
labels would choose (docs/other-labs.md). Only two numbers are searched, for all pictures of a lab
together, so that there is little room for being surely wrong. With each of them, what the model's
early layers take for the usual is moved halfway to what is usual there; nothing is searched in
that. A bundle that has a network for other labs sees them with that one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from bloodcells.bundle import Calibration, ModelBundle
from bloodcells.imaging import Picture, Preprocess, decode_batch
from bloodcells.imaging.window import LARGEST_CROP
from bloodcells.models.early_norm import statistics_at, to_text
from bloodcells.scoring import Scorer
from bloodcells.sites import SiteProfile, compare_with_home
from bloodcells.sites.sample import SEARCHED
from bloodcells.verdicts import Outputs, judge

CROPS: Final = (0.62, 0.79, 1.0, 1.26, 1.58, 2.0, 2.4)
"""Factors of the bundle's crop that are tried, about a quarter apart; training zooms by 1.8."""

DENSITY_STEP: Final = 1.2
MOST_DENSITY_STEPS: Final = 3
LEAST_GAIN: Final = 0.003
"""Less than this much more of mean confidence is chance, and changes no density."""

STATISTICS_SHARE: Final = 0.5
"""How far the statistics of early layers move to the lab's."""

ELSEWHERE_TEMPERATURE: Final = 1.5
"""Factor of the temperature elsewhere. On simulated labs confidence is then 0.07 to 0.14 below
accuracy; real labs were harder than these, so it stays on the careful side."""

MOST_STRANGENESS: Final = 3.0
"""Factor of the limit of strangeness elsewhere: on near simulated labs the typical one is mostly
1.2 to 2.4 times that of home, on far ones 2 to 20."""

Encoded = bytes | npt.NDArray[np.generic]


def make_profile(images: Sequence[Encoded], bundle: ModelBundle) -> SiteProfile:
    """Compare a lab's pictures with the bundle's own lab, and find how the bundle is to see them.

    Args:
        images: of the lab, encoded or as pixels; a hundred or more, of whatever cells.
        bundle: the model.

    Returns:
        The profile. It changes nothing where the pictures look like home, where they are fewer
        than ``MIN_IMAGES``, or where the bundle does not know its home.
    """
    profile = compare_with_home(images, bundle.home, bundle.digest)
    return suited(profile, images, bundle) if profile.standing == "elsewhere" else profile


def suited(profile: SiteProfile, images: Sequence[Encoded], bundle: ModelBundle) -> SiteProfile:
    """Return the profile with the crop and the density with which the model is surest.

    Confidence is what the profile will say, softened; docs/other-labs.md tells what that gains.

    On a CPU, in float32, in one thread: the same pictures have the same profile, whether the
    machine has a GPU or not. Statistics may differ in the last bit between makes of CPU.
    """
    images, scorer = images[:SEARCHED], Scorer(bundle, device="cpu", num_threads=1)
    own = bundle.elsewhere or bundle
    softened = ELSEWHERE_TEMPERATURE * own.calibration.temperature / bundle.calibration.temperature
    profile = replace(
        profile,
        network="elsewhere" if bundle.elsewhere else "home",
        temperature=round(softened, 6),
    )

    def seen(crop: float, density: float) -> SiteProfile:
        tried = replace(profile, crop=crop, density=density)
        return replace(tried, statistics=_statistics(images, bundle, tried))

    def sureness(crop: float, density: float) -> float:
        return mean_confidence(images, scorer.at(seen(crop, density)))

    widest = LARGEST_CROP / bundle.preprocess.crop
    crops = {crop: sureness(crop, 1.0) for crop in CROPS if crop <= widest}
    crop = max(crops, key=crops.__getitem__)
    best, density = crops[crop], 1.0
    for step in (DENSITY_STEP, 1 / DENSITY_STEP):
        for _ in range(MOST_DENSITY_STEPS):
            tried = round(density * step, 4)
            sure = sureness(crop, tried)
            if sure < best + LEAST_GAIN:
                break
            best, density = sure, tried
        if density != 1:
            break
    found = seen(crop, density)
    outputs = outputs_of(images, scorer.at(found))
    return replace(found, strange_above=_limit(own.calibration, outputs))


def _statistics(images: Sequence[Encoded], bundle: ModelBundle, profile: SiteProfile) -> str | None:
    """Return what the model's early layers are to take for the usual; ``None`` if it has none."""
    pixels = _pixels(images, profile.seen_by(bundle.preprocess))
    if not len(pixels):
        return None
    found = statistics_at(bundle.build(profile), torch.from_numpy(pixels), STATISTICS_SHARE)
    return to_text(found) if len(found) else None


def _limit(calibration: Calibration, outputs: Outputs) -> float | None:
    """Return above what pictures are strange at this lab, where all are a little strange.

    As many times the typical strangeness as at home; never less than the home limit, and never
    more than ``MOST_STRANGENESS`` times that: where most pictures are strangers, so is the typical.
    """
    above, typical = calibration.strange_above, calibration.strange_typical
    if above is None or not typical or not len(outputs.strangeness):
        return None
    factor = float(np.median(outputs.strangeness)) / typical
    return round(above * min(max(1.0, factor), MOST_STRANGENESS), 6)


def mean_confidence(images: Sequence[Encoded], scorer: Scorer) -> float:
    """Return the mean confidence, as the site softens it; 0 where no picture can be decoded."""
    calibration = scorer.bundle.calibration.at(scorer.site)
    confidence = judge(outputs_of(images, scorer), calibration).confidence
    return float(confidence.mean()) if len(confidence) else 0.0


def outputs_of(images: Sequence[Encoded], scorer: Scorer) -> Outputs:
    """Return what the model says of the pictures that can be decoded, in their order."""
    return scorer.outputs(_pixels(images, scorer.seen))


def _pixels(images: Sequence[Encoded], preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """Return the pictures that can be decoded as a model sees them, ``uint8 (N, S, S, 3)``."""
    pictures = [p for p in decode_batch(images, preprocess) if isinstance(p, Picture)]
    side = preprocess.size
    pixels = [picture.pixels for picture in pictures]
    return np.stack(pixels) if pixels else np.empty((0, side, side, 3), np.uint8)
