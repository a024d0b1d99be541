"""Pictures of single cells of a run, read back from their stores for a person to look at.

Knows the run's plan, which says where each image lies, and nothing of HTML.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from bloodcells.accounting import planned_shards
from bloodcells.errors import ImageError, StorageError, StoreError, UnavailableError
from bloodcells.imaging import Preprocess, decode
from bloodcells.publish import read_planned
from bloodcells.records import Fault
from bloodcells.report.data import Cell
from bloodcells.stores import read_shard

THUMBNAIL: Final = Preprocess(size=112)
THUMBNAIL_QUALITY: Final = 82


def thumbnails(run_uri: str, cells: Iterable[Cell]) -> dict[str, str]:
    """Return ``data:`` URIs of the cells' pictures by image URI, as far as they can be read.

    A picture is decoded by the road that the classifier's pixels come by, and shows the square in
    the middle of the frame, uncropped.
    """
    images = fetch(run_uri, {cell.image_uri: cell.shard_id for cell in cells})
    shown = {}
    for image_uri, data in images.items():
        try:
            shown[image_uri] = data_uri(data)
        except ImageError:
            continue
    return shown


def data_uri(data: bytes | npt.NDArray[np.generic]) -> str:
    """Return a small picture of an image as a ``data:`` URI.

    Raises:
        ImageError: it does not decode.
    """
    encoded = io.BytesIO()
    pixels = decode(data, THUMBNAIL).pixels
    Image.fromarray(pixels).save(encoded, "JPEG", quality=THUMBNAIL_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def fetch(run_uri: str, images: Mapping[str, str]) -> dict[str, bytes | npt.NDArray[np.generic]]:
    """Read single images of a run back from their stores, through the run's plan.

    Of the plan only the rows of the shards concerned are read, and of the stores only the images
    asked for. An image that can no longer be read is left out.

    Args:
        run_uri: the run folder.
        images: shard id by image URI, as the score rows have them.

    Returns:
        Encoded bytes, or pixels for ``.npz``, by image URI.
    """
    found: dict[str, bytes | npt.NDArray[np.generic]] = {}
    if not images:
        return found
    wanted = set(images.values())
    for planned in planned_shards(run_uri):
        if not wanted:
            break
        if planned.shard_id not in wanted:
            continue
        wanted.discard(planned.shard_id)
        shard = read_planned(planned.plan_uri, planned.plan_row)
        members = tuple(m for m in shard.members if images.get(m.image_uri) == shard.shard_id)
        try:
            for record in read_shard(replace(shard, members=members)):
                if not isinstance(record.data, Fault):
                    found[record.member.image_uri] = record.data
        except UnavailableError:
            # Minutes of retries are over, and each image to come would take as long.
            return found
        except (StorageError, StoreError):
            continue
    return found
