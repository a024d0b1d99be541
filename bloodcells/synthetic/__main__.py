"""``python -m bloodcells.synthetic``: draw an archive of slides, and show how far it has come."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bloodcells.synthetic import BALANCED, DIFFERENTIALS, write_smears


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bloodcells.synthetic",
        description="Draw smears of synthetic blood cells: one tar a slide, four patients in turn.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write slides to")
    parser.add_argument("--slides", type=int, default=8, help="number of slides (%(default)s)")
    parser.add_argument("--cells", type=int, default=100, help="cells a slide (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (%(default)s)")
    parser.add_argument(
        "--balanced",
        action="store_true",
        help="draw as many cells of every type instead, to train on",
    )
    parser.add_argument("--unlabelled", action="store_true", help="leave the cell types out")
    options = parser.parse_args(arguments)
    if options.slides < 1 or options.cells < 1 or options.seed < 0:
        parser.error("--slides and --cells must be at least 1, and --seed at least 0")
    started = time.monotonic()
    write_smears(
        options.out,
        options.slides,
        options.cells,
        options.seed,
        differentials=[BALANCED] if options.balanced else list(DIFFERENTIALS.values()),
        labelled=not options.unlabelled,
        progress=lambda done, total: print(
            f"drew slide {done} of {total} ({done * options.cells} cells, "
            f"{time.monotonic() - started:.1f} s)",
            flush=True,
        ),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
