"""From a store's pictures to its site profile: the one road of a run and of ``jobs.site``.

``sites.sample_images`` chooses pictures, here those that cannot be decoded are left out, and the
others are compared with home; a model is loaded only where they lie elsewhere. Knows nothing of
where shards come from, nor of Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bloodcells.errors import ImageError
from bloodcells.imaging import Picture, Preprocess, decode_small
from bloodcells.isolated import IsolatedDecoder
from bloodcells.sites import SIDE_PX, HomeReference, SiteProfile, compare_with_home

if TYPE_CHECKING:
    from bloodcells.bundle import ModelBundle

Encoded = bytes | npt.NDArray[np.generic]


def decodable(images: Sequence[Encoded], *, isolated: bool) -> list[Encoded]:
    """Return the pictures that can be decoded, in their order.

    Args:
        images: encoded, or pixels.
        isolated: decode in a process of its own, which takes some seconds to start: one picture
            that ends its decoder, or hangs, is then left out as well, and ends nothing else.
    """
    if not isolated:
        return [image for image in images if _is_decodable(image)]
    with IsolatedDecoder() as decoder:
        seen = decoder.decode_batch(list(images), Preprocess(size=SIDE_PX))
    return [image for image, it in zip(images, seen, strict=True) if isinstance(it, Picture)]


def _is_decodable(image: Encoded) -> bool:
    try:
        decode_small(image, SIDE_PX)
    except ImageError:
        return False
    return True


def profile_of(
    images: Sequence[Encoded],
    home: HomeReference | None,
    bundle_digest: str,
    load_bundle: Callable[[], ModelBundle],
    acting: SiteProfile | None = None,
) -> SiteProfile:
    """Compare a store's pictures with home, and find how the model is to see them.

    Args:
        images: a sample of the store, all decodable.
        home: what the bundle knows of its lab.
        bundle_digest: of that bundle.
        load_bundle: loads it; called only where the pictures are from elsewhere.
        acting: the profile by which they are to be seen, where that is settled; nothing is
            searched then.

    Raises:
        BloodcellsError: what ``load_bundle`` raises.
    """
    compared = compare_with_home(images, home, bundle_digest)
    if acting is not None:
        return compared.acting_as(acting)
    if compared.standing != "elsewhere":
        return compared
    from bloodcells.site_search import suited  # here: at home nobody waits for torch

    return suited(compared, images, load_bundle())
