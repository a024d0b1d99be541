"""A page of augmented cells for a person to look at: what training sees, before it trains.

Draws with the function and the keys that training uses. Knows stores and synthetic cells, which
the rest of this package does not.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from bloodcells.augment.geometry import with_margin
from bloodcells.augment.keys import image_keys
from bloodcells.augment.mixing import mix
from bloodcells.augment.settings import Augmentation
from bloodcells.augment.tone_curve import toned
from bloodcells.augment.views import augment
from bloodcells.cells import CLASSES
from bloodcells.errors import ConfigurationError, ImageError, StoreError
from bloodcells.imaging import Preprocess, Tone, content_hash, decode
from bloodcells.records import Fault, Shard
from bloodcells.stores import open_store, plan_source, read_shard
from bloodcells.synthetic import draw_cell

FORMATS: Final = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}

_GAP_PX: Final = 4
_LINE_PX: Final = 15
_FONT_PX: Final = 12
_LOOKED_AT: Final = 2000
"""Images of a store among which the page's are chosen; a store is not listed to its end for it."""


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Cells that a page can show.

    Attributes:
        pixels: ``uint8 (N, M, M, 3)``, RGB: crops with their margin.
        image_ids: ``uint64 (N,)``, of their contents.
    """

    pixels: npt.NDArray[np.uint8]
    image_ids: npt.NDArray[np.uint64]


def synthetic_fields(num_images: int, preprocess: Preprocess, seed: int) -> Fields:
    """Draw synthetic cells, the eight types in turn."""
    images = [draw_cell(CLASSES[i % len(CLASSES)], seed + i) for i in range(num_images)]
    return _decoded(images, preprocess, num_images)


def store_fields(uri: str, num_images: int, preprocess: Preprocess, seed: int) -> Fields:
    """Choose images among the first of a store, each class in turn where there are labels.

    Raises:
        StoreError: it has no image that can be decoded.
        StorageError: it is out of reach.
    """
    shards = list(_first_shards(uri))
    places = [(i, j) for i, shard in enumerate(shards) for j in range(len(shard.members))]
    np.random.default_rng(seed).shuffle(places)
    by_label: dict[str, list[tuple[int, int]]] = {}
    for i, j in places:
        by_label.setdefault(shards[i].members[j].label or "", []).append((i, j))
    # Turn by turn, one of each label; and some more than asked for, as some may not decode.
    turns = sorted(
        (turn, label, place)
        for label, found in by_label.items()
        for turn, place in enumerate(found[: num_images + 8])
    )
    images = (image for _, _, (i, j) in turns for image in _read(shards[i], j))
    fields = _decoded(images, preprocess, num_images)
    if not len(fields.pixels):
        raise StoreError(f"--store {uri}: no image in it can be decoded; name a store of cells")
    return fields


def draw_page(
    fields: Fields,
    preprocess: Preprocess,
    augmentations: Sequence[Augmentation],
    *,
    num_images: int,
    num_views: int,
    seed: int,
) -> Image.Image:
    """Draw one block for each augmentation: its text, and below it a row for each cell.

    A row shows the cell as it is, then what the first ``num_views`` epochs of a training with this
    seed would make of it.
    """
    size = preprocess.size
    step = size + _GAP_PX
    width = (num_views + 1) * step + 2 * _GAP_PX
    blocks = []
    for augmentation in augmentations:
        # A letter of this font is at most 7 px wide on average.
        caption = textwrap.wrap(str(augmentation).replace(",", ", "), max(20, width // 7))
        rows = _rows(fields, size, augmentation, num_views, seed)[:num_images]
        blocks.append((caption, rows))
    height = sum(_LINE_PX * len(caption) + step * len(rows) for caption, rows in blocks)
    page = Image.new("RGB", (width, height + 2 * _GAP_PX * len(blocks)), "white")
    drawing = ImageDraw.Draw(page)
    font = ImageFont.load_default(_FONT_PX)
    top = _GAP_PX
    for caption, rows in blocks:
        for line in caption:
            drawing.text((_GAP_PX, top), line, fill="black", font=font)
            top += _LINE_PX
        for row in rows:
            for column, view in enumerate(row):
                # The plain view stands a little apart.
                left = _GAP_PX + column * step + (_GAP_PX if column else 0)
                page.paste(Image.fromarray(view), (left, top))
            top += step
        top += 2 * _GAP_PX
    return page


def encode(page: Image.Image, name: str) -> bytes:
    """Return a page as a file of the kind that the suffix of ``name`` says.

    Raises:
        ConfigurationError: the suffix is neither of PNG nor of JPEG.
    """
    suffix = PurePath(name).suffix.lower()
    if suffix not in FORMATS:
        raise ConfigurationError(f"--out {name}: name a file that ends in {', '.join(FORMATS)}")
    encoded = io.BytesIO()
    page.save(encoded, FORMATS[suffix], quality=85, optimize=True)
    return encoded.getvalue()


def _rows(
    fields: Fields, size: int, augmentation: Augmentation, num_views: int, seed: int
) -> npt.NDArray[np.uint8]:
    """Return ``uint8 (N, 1 + num_views, size, size, 3)``."""
    pixels = torch.from_numpy(fields.pixels)
    shown_once = np.zeros(len(pixels), np.int64)
    columns = [augment(pixels, size, Augmentation.parse("none"), fields.image_ids)]
    for epoch in range(num_views):
        keys = image_keys(seed, epoch, fields.image_ids, shown_once)
        views = augment(pixels, size, augmentation, keys)
        if augmentation.power:  # of densities relative to an even background, as in training
            views = toned(views, Tone(), augmentation, keys)
        views, _ = mix(views, torch.eye(len(views)), augmentation, int(keys[0]))
        columns.append(views)
    rows: npt.NDArray[np.uint8] = torch.stack(columns, dim=1).numpy()
    return rows


def _first_shards(uri: str) -> Iterator[Shard]:
    num_images = 0
    for source in open_store(uri).sources():
        for item in plan_source(source):
            if isinstance(item, Shard):
                yield item
                num_images += len(item.members)
            if num_images >= _LOOKED_AT:
                return


def _read(shard: Shard, place: int) -> Iterator[bytes | npt.NDArray[np.generic]]:
    for record in read_shard(replace(shard, members=shard.members[place : place + 1])):
        if not isinstance(record.data, Fault):
            yield record.data


def _decoded(
    images: Iterator[bytes | npt.NDArray[np.generic]] | Sequence[npt.NDArray[np.uint8]],
    preprocess: Preprocess,
    num_images: int,
) -> Fields:
    """Decode the first ``num_images`` that can be."""
    field = with_margin(preprocess)
    pixels: list[npt.NDArray[np.uint8]] = []
    hashes: list[int] = []
    for data in images:
        if len(pixels) == num_images:
            break
        try:
            pixels.append(decode(data, field).pixels)
        except ImageError:
            continue
        hashes.append(int(content_hash(data)[:16], 16))
    return Fields(
        pixels=np.array(pixels, np.uint8).reshape(-1, field.size, field.size, 3),
        image_ids=np.array(hashes, np.uint64),
    )
