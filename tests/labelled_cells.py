"""Drawn cells of three types, in folders named after them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

from PIL import Image

from bloodcells.synthetic import draw_cell

KINDS: Final = ("eosinophil", "lymphocyte", "neutrophil")


def png(cell_type: str, seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw_cell(cell_type, seed)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_store(folder: Path) -> Path:
    """Write six cells of each kind; a file's first letter is its slide. Returns the folder."""
    for kind in KINDS:
        (folder / kind).mkdir()
        for seed in range(6):
            (folder / kind / f"{'abc'[seed % 3]}-{seed}.png").write_bytes(png(kind, seed))
    return folder
