"""Labelled cells of several labs, and pictures that are no cells, from the archives they lie in."""

from __future__ import annotations

import csv
import io
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_sample_images

from bloodcells.cells import CLASSES, class_of

Pixels = npt.NDArray[np.uint8]
PER_KIND = 150
"""Pictures of each kind that is no cell."""


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Labelled cells.

    Attributes:
        names: file names.
        images: encoded, or pixels ``uint8 (H, W, 3)``.
        labels: ``int64 (N,)``, places in ``CLASSES``.
    """

    names: list[str]
    images: list[bytes]
    labels: npt.NDArray[np.int64]

    def take(self, rows: npt.NDArray[np.int64]) -> Cells:
        """Return some of them, in the order of ``rows``."""
        return Cells(
            names=[self.names[row] for row in rows],
            images=[self.images[row] for row in rows],
            labels=self.labels[rows],
        )


def read_lab(archive: Path) -> Cells:
    """Read a tar of ``class/file`` members."""
    return _cells(_members(archive))


def read_home(folder: Path, *splits: str) -> Cells:
    """Read the PBC cells of some splits."""
    with (folder / "labels.csv").open() as file:
        wanted = {
            (row["shard"], row["member"]) for row in csv.DictReader(file) if row["split"] in splits
        }
    return _cells(
        (name, data)
        for archive in sorted(folder.glob("pbc-*.tar"))
        for name, data in _members(archive)
        if (archive.name, name) in wanted
    )


def _cells(members: Iterator[tuple[str, bytes]]) -> Cells:
    names, images = zip(*members, strict=True)
    labels = [CLASSES.index(class_of(name.split("/")[0]) or "") for name in names]
    return Cells(names=list(names), images=list(images), labels=np.array(labels, np.int64))


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile():
                file = tar.extractfile(member)
                assert file is not None
                yield member.name, file.read()


def strangers(home: Cells, fields: Path) -> dict[str, list[Pixels]]:
    """Return pictures that are no cells, by kind.

    ``red_cells`` and ``empty`` are cut from home frames where no nucleus is; ``photographs`` are
    parts of scikit-learn's two; ``noise`` and ``texture`` are drawn; ``field_red_cells`` are cut
    from whole fields by their boxes, and ``field_white_cells`` in the same way, to compare with.
    """
    rng = np.random.default_rng(11)
    red, empty = _beside_cells(home, rng)
    return {
        "photographs": _photographs(rng),
        "texture": [_waves(rng, number) for number in range(PER_KIND)],
        "noise": [_noise(rng) for _ in range(PER_KIND)],
        "empty": empty,
        "red_cells": red,
        **_boxes(fields, rng),
    }


def _beside_cells(home: Cells, rng: np.random.Generator) -> tuple[list[Pixels], list[Pixels]]:
    red: list[Pixels] = []
    empty: list[Pixels] = []
    for row in rng.permutation(len(home.images)):
        frame = np.asarray(Image.open(io.BytesIO(home.images[row])).convert("RGB"))
        green = ndimage.gaussian_filter(frame[..., 1].astype(float), 2)
        for _ in range(12):
            side = int(rng.integers(70, 160))
            top, left = (int(rng.integers(0, length - side)) for length in green.shape)
            window = green[top : top + side, left : left + side]
            if (window < 140).any():  # a nucleus, or a platelet
                continue
            third = side // 3
            is_red = (window[third : 2 * third, third : 2 * third] < 205).mean() > 0.5
            kind = red if is_red else empty if (window < 205).mean() < 0.02 else None
            if kind is not None and len(kind) < PER_KIND:
                kind.append(frame[top : top + side, left : left + side])
        if min(len(red), len(empty)) == PER_KIND:
            break
    return red, empty


def _photographs(rng: np.random.Generator) -> list[Pixels]:
    parts = []
    for photograph in load_sample_images().images:
        for _ in range(PER_KIND // 2):
            side = int(rng.integers(60, 400))
            top, left = (int(rng.integers(0, length - side)) for length in photograph.shape[:2])
            parts.append(np.array(photograph[top : top + side, left : left + side]))
    return parts


def _waves(rng: np.random.Generator, number: int) -> Pixels:
    down, across = np.mgrid[:256, :256]
    angle, pitch = rng.uniform(0, np.pi), rng.uniform(0.02, 0.4)
    wave = np.sin(pitch * (np.cos(angle) * across + np.sin(angle) * down))
    if number % 3 == 0:
        wave = np.sign(wave)
    if number % 3 == 1:
        wave = wave * np.sin(pitch * (np.cos(angle + 1.5) * across + np.sin(angle + 1.5) * down))
    colours = rng.uniform(30, 225, 3) + wave[..., None] * rng.normal(0, 60, 3)
    return np.clip(colours, 0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator) -> Pixels:
    cells = int(rng.choice([4, 8, 16, 64, 256]))
    coarse = rng.normal(0, rng.uniform(10, 70), (cells, cells, 3)) + rng.uniform(40, 220, 3)
    picture = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
    return np.asarray(picture.resize((256, 256), Image.Resampling.BICUBIC))


def _boxes(fields: Path, rng: np.random.Generator) -> dict[str, list[Pixels]]:
    """Cut boxes out of whole fields, half as large again, as the labs' single cells were."""
    members = dict(_members(fields))
    pictures = {Path(name).stem: data for name, data in members.items() if "images/" in name}
    found: dict[str, list[Pixels]] = {"RBC": [], "WBC": []}
    for name in sorted(member for member in members if member.endswith(".xml")):
        picture = Image.open(io.BytesIO(pictures[Path(name).stem])).convert("RGB")
        for item in ET.fromstring(members[name]).iter("object"):  # noqa: S314  # the data set's own
            kind = item.findtext("name", "")
            edges = [int(float(item.findtext(f"bndbox/{e}", "0"))) for e in _EDGES]
            window = _widened(edges)
            inside = window[0] >= 0 and window[1] >= 0 and window[2] <= picture.width
            if kind in found and inside and window[3] <= picture.height and window[2] > window[0]:
                found[kind].append(np.asarray(picture.crop(window)))
    chosen = rng.permutation(len(found["RBC"]))[: 2 * PER_KIND]
    return {
        "field_red_cells": [found["RBC"][row] for row in sorted(chosen)],
        "field_white_cells": found["WBC"],
    }


_EDGES = ("xmin", "ymin", "xmax", "ymax")


def _widened(edges: list[int]) -> tuple[int, int, int, int]:
    half = 0.75 * max(edges[2] - edges[0], edges[3] - edges[1])
    across, down = (edges[0] + edges[2]) / 2, (edges[1] + edges[3]) / 2
    return int(across - half), int(down - half), int(across + half), int(down + half)
