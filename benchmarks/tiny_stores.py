"""Stores of very many very small pictures: what a plan and its books cost without the pixels.

The pictures are drawn from a few dozen different ones, so that writing a million takes a minute.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE_PX: Final = 16
NUM_DIFFERENT: Final = 64
IMAGES_A_FILE: Final = 50_000
ROW_GROUP: Final = 1000

StoreKind = Literal["parquet", "zip"]


def write_store(folder: Path, num_images: int, kind: StoreKind) -> int:
    """Write a store of tiny JPEGs; returns its bytes.

    Args:
        folder: where; made anew.
        num_images: how many, ``IMAGES_A_FILE`` a file.
        kind: tables with a column ``image``, or zip archives without compression.
    """
    folder.mkdir(parents=True)
    pictures = _pictures()
    for number, first in enumerate(range(0, num_images, IMAGES_A_FILE)):
        count = min(IMAGES_A_FILE, num_images - first)
        path = folder / f"slide-{number:04}.{kind}"
        if kind == "parquet":
            images = [pictures[k % NUM_DIFFERENT] for k in range(count)]
            table = pa.table({"image": pa.array(images, pa.binary())})
            pq.write_table(table, path, row_group_size=ROW_GROUP, compression="none")
        else:
            _write_zip(path, pictures, count)
    return sum(path.stat().st_size for path in folder.iterdir())


def _write_zip(path: Path, pictures: Sequence[bytes], count: int) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for k in range(count):
            archive.writestr(f"cells/{k:06}.jpg", pictures[k % NUM_DIFFERENT])


def _pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    return [_jpeg(rng) for _ in range(NUM_DIFFERENT)]


def _jpeg(rng: np.random.Generator) -> bytes:
    shade = rng.integers(60, 220, 3)
    pixels = np.clip(shade + rng.integers(-20, 20, (SIDE_PX, SIDE_PX, 3)), 0, 255)
    encoded = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(encoded, "JPEG", quality=60)
    return encoded.getvalue()


def write_cells(
    folder: Path, num_images: int, pictures: Sequence[bytes], images_a_file: int
) -> int:
    """Write a store of real cells, again from the first where there are fewer; returns its bytes.

    Args:
        folder: where; made anew.
        num_images: how many.
        pictures: encoded images.
        images_a_file: images in a zip archive.
    """
    folder.mkdir(parents=True)
    cells = (pictures[k % len(pictures)] for k in range(num_images))
    for number in range(-(-num_images // images_a_file)):
        some = list(islice(cells, images_a_file))
        with zipfile.ZipFile(folder / f"slide-{number:04}.zip", "w") as archive:
            for k, data in enumerate(some):
                archive.writestr(f"{k:06}.jpg", data)
    return sum(path.stat().st_size for path in folder.iterdir())
