"""``python -m bloodcells.augment``: draw a page of augmented cells."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bloodcells import storage
from bloodcells.augment.page import FORMATS, draw_page, encode, store_fields, synthetic_fields
from bloodcells.augment.settings import Augmentation
from bloodcells.errors import BloodcellsError, ConfigurationError
from bloodcells.imaging import Preprocess


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bloodcells.augment",
        description="Draw a page of cells: a row a cell, as it is and as training will see it.",
    )
    parser.add_argument("--out", required=True, help=f"picture to write: {', '.join(FORMATS)}")
    parser.add_argument("--store", help="store of cells, local or s3://; else synthetic cells")
    parser.add_argument(
        "--augment",
        action="append",
        help="what to do to them, as jobs.train takes it; repeatable (default)",
    )
    parser.add_argument("--images", type=int, default=8, help="rows (%(default)s)")
    parser.add_argument("--views", type=int, default=7, help="changed views a row (%(default)s)")
    parser.add_argument("--size", type=int, default=96, help="side of a view in px (%(default)s)")
    parser.add_argument(
        "--crop", type=float, default=0.65, help="share of a picture that is shown (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same page (%(default)s)")
    try:
        _draw(parser.parse_args(arguments))
    except BloodcellsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _draw(options: argparse.Namespace) -> None:
    for name in ("images", "views"):
        if not 1 <= getattr(options, name) <= 64:
            raise ConfigurationError(f"--{name} {getattr(options, name)}: give 1 to 64")
    if options.seed < 0:
        raise ConfigurationError(f"--seed {options.seed}: give 0 or more")
    if not options.out.lower().endswith(tuple(FORMATS)):
        raise ConfigurationError(f"--out {options.out}: name a file ending in {', '.join(FORMATS)}")
    augmentations = [Augmentation.parse(text) for text in options.augment or ["default"]]
    preprocess = Preprocess(size=options.size, crop=options.crop)
    # CutMix and MixUp need a second cell, shown or not.
    num_fields = max(2, options.images)
    if options.store is None:
        fields = synthetic_fields(num_fields, preprocess, options.seed)
    else:
        fields = store_fields(options.store, num_fields, preprocess, options.seed)
    page = draw_page(
        fields,
        preprocess,
        augmentations,
        num_images=options.images,
        num_views=options.views,
        seed=options.seed,
    )
    out = storage.normalise(options.out)
    storage.put(out, encode(page, options.out))
    print(f"{len(fields.pixels[: options.images])} cells in {options.views} views: {out}")


if __name__ == "__main__":
    sys.exit(main())
