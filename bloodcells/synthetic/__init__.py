"""Synthetic smears: cells of the eight types, slides and archives of them, and damaged files.

For demos and tests, where real cells may not go. ``cells`` draws through ``optics``, ``slides``
mixes cells to a patient's blood, ``archives`` writes them into containers, ``damage`` makes what
an archive should never hold and sometimes does. Knows nothing of models and runs.
"""

from __future__ import annotations

from bloodcells.synthetic.archives import write_archive, write_smears
from bloodcells.synthetic.cells import draw_cell
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
    "ImageFile",
    "Stain",
    "draw_cell",
    "draw_slide",
    "encode_jpeg",
    "write_archive",
    "write_smears",
]
