"""Writes image files into every kind of container that a store can be, byte for byte reproducibly.

Knows nothing of how cells are drawn, and reads no archive.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from bloodcells.cells import CLASSES
from bloodcells.records import ShardKind
from bloodcells.synthetic.slides import DIFFERENTIALS, ImageFile, draw_slide

SUFFIXES: Final[dict[ShardKind, str]] = {
    "folder": "",
    "tar": ".tar",
    "targz": ".tar.gz",
    "zip": ".zip",
    "parquet": ".parquet",
    "npz": ".npz",
}
"""How a container of each kind is named."""


def write_archive(
    path: str | Path, images: Iterable[ImageFile], kind: ShardKind, *, labelled: bool = True
) -> Path:
    """Write the same images into a container of any kind, over what was there before.

    Members are named ``<label>/<name>``. Parquet has the columns ``image``, ``label`` and ``name``;
    ``.npz`` has decoded pixels ``images`` uint8 (N, H, W, 3) and ``labels`` uint8 (N, 1).

    Args:
        path: the file or folder to write on this machine; its parents are made.
        images: what to write, in this order.
        kind: a folder, or one of the archives and tables that stores read.
        labelled: whether labels are written; without them members are named ``<name>``.

    Returns:
        The path.

    Raises:
        ValueError: ``kind`` is unknown; a folder cannot hold a name; ``.npz`` got images that do
            not decode, differ in size, or have no label although ``labelled``.
    """
    path = Path(path)
    if kind not in SUFFIXES:
        raise ValueError(f"kind {kind!r} is none of {', '.join(SUFFIXES)}")
    images = list(images)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        _write_folder(path, images, labelled)
    elif kind == "tar":
        with path.open("wb") as file:
            _write_tar(file, images, labelled)
    elif kind == "targz":
        # No name and no time in the gzip header, so that the same images give the same bytes.
        with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
            _write_tar(packed, images, labelled)
    elif kind == "zip":
        _write_zip(path, images, labelled)
    elif kind == "parquet":
        _write_parquet(path, images, labelled)
    else:
        _write_npz(path, images, labelled)
    return path


def write_smears(
    folder: str | Path,
    num_slides: int,
    cells_per_slide: int,
    seed: int,
    *,
    differentials: Sequence[Mapping[str, float]] = tuple(DIFFERENTIALS.values()),
    labelled: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Draw an archive of slides: ``slide-0001.tar``, ``slide-0002.tar`` and so on.

    Slide number n is the same however many follow.

    Args:
        folder: where to write.
        num_slides: how many slides, at least 1.
        cells_per_slide: images a slide, at least 1.
        seed: the same arguments give the same bytes.
        differentials: the mixes of cell types that slides take in turn.
        labelled: whether members stand in folders named after their class.
        progress: called after every slide with the slides done and all slides.

    Returns:
        The paths of the slides.

    Raises:
        ValueError: a number is too small.
    """
    if num_slides < 1 or cells_per_slide < 1 or seed < 0:
        raise ValueError(
            "num_slides and cells_per_slide must be at least 1 and seed at least 0: "
            f"{num_slides}, {cells_per_slide}, {seed}"
        )
    paths = []
    for number in range(1, num_slides + 1):
        own_seed = int(np.random.default_rng([seed, number]).integers(2**62))
        mix = differentials[(number - 1) % len(differentials)]
        cells = draw_slide(mix, cells_per_slide, own_seed)
        path = Path(folder) / f"slide-{number:04d}.tar"
        paths.append(write_archive(path, cells, "tar", labelled=labelled))
        if progress is not None:
            progress(number, num_slides)
    return paths


def _member_name(image: ImageFile, labelled: bool) -> str:
    return f"{image.label}/{image.name}" if labelled and image.label else image.name


def _write_folder(path: Path, images: Sequence[ImageFile], labelled: bool) -> None:
    for image in images:
        name = PurePosixPath(_member_name(image, labelled))
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(f"{str(name)!r} leads out of the folder {path}; write a tar or zip")
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(image.data)


def _write_tar(
    file: IO[bytes] | gzip.GzipFile, images: Sequence[ImageFile], labelled: bool
) -> None:
    with tarfile.open(fileobj=file, mode="w") as archive:
        for image in images:
            info = tarfile.TarInfo(_member_name(image, labelled))
            info.size = len(image.data)
            archive.addfile(info, io.BytesIO(image.data))


def _write_zip(path: Path, images: Sequence[ImageFile], labelled: bool) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for image in images:
            # ZipInfo's own date is 1980, so no clock gets into the bytes.
            info = zipfile.ZipInfo(_member_name(image, labelled))
            archive.writestr(info, image.data, zipfile.ZIP_DEFLATED)


def _write_parquet(path: Path, images: Sequence[ImageFile], labelled: bool) -> None:
    columns = {
        "image": pa.array([image.data for image in images], pa.binary()),
        "label": pa.array([image.label for image in images], pa.string()),
        "name": pa.array([image.name for image in images], pa.string()),
    }
    if not labelled:
        del columns["label"]
    pq.write_table(pa.table(columns), path, row_group_size=500)


def _write_npz(path: Path, images: Sequence[ImageFile], labelled: bool) -> None:
    pixels = [_pixels(image) for image in images]
    if len({array.shape for array in pixels}) > 1:
        raise ValueError(f"{path}: .npz holds one array, so all images must have one size")
    arrays = {"images": np.stack(pixels) if pixels else np.zeros((0, 1, 1, 3), np.uint8)}
    if labelled:
        if any(image.label not in CLASSES for image in images):
            raise ValueError(f"{path}: .npz labels are class numbers, so every image needs a class")
        numbers = [CLASSES.index(image.label) for image in images if image.label]
        arrays["labels"] = np.array(numbers, np.uint8).reshape(-1, 1)
    with path.open("wb") as file:  # given a path, savez would add its own suffix
        np.savez(file, allow_pickle=False, **arrays)


def _pixels(image: ImageFile) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    try:
        return np.asarray(Image.open(io.BytesIO(image.data)).convert("RGB"))
    except OSError as error:
        raise ValueError(
            f"{image.name!r} does not decode, so it cannot go into .npz: {error}"
        ) from error
