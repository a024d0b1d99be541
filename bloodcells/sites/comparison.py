"""A store's pictures compared with a bundle's home. Knows nothing of models, nor of torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from bloodcells.errors import ImageError
from bloodcells.imaging import decode_small
from bloodcells.sites.home import MIN_IMAGES, HomeReference
from bloodcells.sites.profile import SiteProfile
from bloodcells.sites.rulers import RULERS, SIDE_PX, Measures, measure

Encoded = bytes | npt.NDArray[np.generic]


def compare_with_home(
    images: Sequence[Encoded], home: HomeReference | None, bundle_digest: str
) -> SiteProfile:
    """Return a profile that changes nothing and says how far pictures lie from home.

    Args:
        images: encoded, or pixels; those that cannot be decoded do not count.
        home: what the bundle knows of its lab.
        bundle_digest: of that bundle.
    """
    measures = measure_all(images)
    profile = SiteProfile(bundle_digest=bundle_digest, num_images=len(measures))
    if home is None or len(measures) < MIN_IMAGES:
        return profile
    distance = round(home.distance(measures), 4)
    medians = np.median(measures, axis=0)
    return SiteProfile(
        bundle_digest=bundle_digest,
        num_images=len(measures),
        standing="home" if distance <= home.threshold else "elsewhere",
        distance=distance,
        threshold=home.threshold,
        measures={
            name: (round(float(here), 4), round(float(there), 4))
            for name, here, there in zip(RULERS, medians, home.centre, strict=True)
        },
    )


def measure_all(images: Iterable[Encoded]) -> Measures:
    """Lay the rulers on all pictures that can be decoded; returns ``float64 (N, 7)``."""
    return np.array(list(_measured(images)), np.float64).reshape(-1, len(RULERS))


def _measured(images: Iterable[Encoded]) -> Iterator[Measures]:
    for image in images:
        try:
            yield measure(decode_small(image, SIDE_PX))
        except ImageError:
            continue
