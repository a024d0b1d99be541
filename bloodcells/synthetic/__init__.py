"""Synthetic smears: cells of the eight types, slides and archives of them, and damaged files.

For demos and tests, where real cells may not go. ``cells`` and ``red_cells`` draw through
``optics``, ``slides`` mixes cells to a patient's blood, ``archives`` writes them into containers;
``damage`` and ``archive_damage`` make what no archive should hold and some do. Knows nothing of
models and runs.
"""

from __future__ import annotations

from bloodcells.synthetic.archive_damage import DamagedArchive, damaged_archives
from bloodcells.synthetic.archives import write_archive, write_smears
from bloodcells.synthetic.cells import draw_cell
from bloodcells.synthetic.damage import DamagedFile, damaged_files
from bloodcells.synthetic.optics import Stain
from bloodcells.synthetic.slides import (
    BALANCED,
    DIFFERENTIALS,
    EOSINOPHILIC,
    LEFT_SHIFT,
    LYMPHOCYTIC,
    NORMAL,
    ImageFile,
    draw_slide,
    encode_jpeg,
)

__all__ = [
    "BALANCED",
    "DIFFERENTIALS",
    "EOSINOPHILIC",
    "LEFT_SHIFT",
    "LYMPHOCYTIC",
    "NORMAL",
    "DamagedArchive",
    "DamagedFile",
    "ImageFile",
    "Stain",
    "damaged_archives",
    "damaged_files",
    "draw_cell",
    "draw_slide",
    "encode_jpeg",
    "write_archive",
    "write_smears",
]
