"""Who is measured: each contender is one command, from a folder of images to a table of classes.

Every contender gets the same images, the same weights and the whole machine, and is timed as a
process from its start to its end. Those of the *limit* only run the model, over pixels that lie in
memory already: no pipeline can be faster than the model it feeds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a contender works on.

    Attributes:
        folder: a folder tree of ``num_images`` JPEG files.
        pixels: ``.npy`` file, ``uint8 (at least num_images, S, S, 3)``: the same images, decoded.
        num_images: how many images to classify.
        bundle: folder of the model bundle.
        shard_size: images in a shard of ``jobs.score``. While the last shard is scored other cores
            have nothing to do, so a slow model wants small ones where images are few.
    """

    folder: Path
    pixels: Path
    num_images: int
    bundle: Path
    shard_size: int = 256


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to classify images.

    Attributes:
        name: as the table and ``--only`` call it.
        what: one line for the table's reader.
        command: the process to start, given material and the folder to write into.
        tables: glob of the Parquet files it leaves in that folder; one row an image.
    """

    name: str
    what: str
    command: Callable[[Material, Path], list[str]]
    tables: str = "*.parquet"


NUM_CORES: Final = os.cpu_count() or 1


def _ours(*flags: str) -> Callable[[Material, Path], list[str]]:
    def command(material: Material, out: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "jobs.score", "--store", str(material.folder)),
            *("--out", str(out), "--bundle", str(material.bundle)),
            *("--shard-size", str(material.shard_size), *flags),
        ]

    return command


def _bare(*flags: str) -> Callable[[Material, Path], list[str]]:
    def command(material: Material, out: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "benchmarks.contenders.bare", "--bundle", str(material.bundle)),
            *("--pixels", str(material.pixels), "--num-images", str(material.num_images)),
            *("--out", str(out), *flags),
        ]

    return command


def _script(module: str, *flags: str) -> Callable[[Material, Path], list[str]]:
    def command(material: Material, out: Path) -> list[str]:
        return [
            *(sys.executable, "-m", f"benchmarks.contenders.{module}"),
            *("--images", str(material.folder), "--bundle", str(material.bundle)),
            *("--out", str(out), *flags),
        ]

    return command


def _limits() -> list[Contender]:
    """The bare model three ways, each with all cores on one batch and with one batch a core."""
    ways = {
        "eager": "as built, channels_last",
        "folded": "folded and fused, freed memory kept, as we run it",
        "compiled": "folded, then torch.compile",
    }
    each = ("--processes", str(NUM_CORES))
    return [
        Contender(name=f"bare_{way}{suffix}", what=text, command=_bare("--model", way, *flags))
        for way, words in ways.items()
        for suffix, text, flags in (
            ("", f"limit: the model {words}; all cores on a batch", ()),
            ("_per_core", f"limit: the model {words}; a process a core", each),
        )
    ]


CONTENDERS: Final[tuple[Contender, ...]] = (
    Contender(
        name="ours",
        what="jobs.score",
        command=_ours(),
        tables="scores/*.parquet",
    ),
    Contender(
        name="ours_compiled",
        what="jobs.score --compile",
        command=_ours("--compile"),
        tables="scores/*.parquet",
    ),
    *_limits(),
    Contender(
        name="plain",
        what="DataLoader script: Pillow, 2 workers, eager channels_last model",
        command=_script("plain"),
    ),
    Contender(
        name="plain_our_decoder",
        what="the same script, decoding with bloodcells.imaging",
        command=_script("plain", "--decoder", "ours"),
    ),
    Contender(
        name="plain_our_decoder_folded",
        what="the same, with our folded model too",
        command=_script("plain", "--decoder", "ours", "--folded"),
    ),
    Contender(
        name="ray_recipe",
        what="Ray Data as its documentation has it",
        command=_script("ray_recipe"),
    ),
    Contender(
        name="daft",
        what="Daft as its documentation has it",
        command=_script("daft_recipe"),
    ),
)


def chosen(names: str | None) -> list[Contender]:
    """Return the contenders named in a comma-separated list, in the table's order; all by default.

    Raises:
        ValueError: a name is not known.
    """
    if names is None:
        return list(CONTENDERS)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = {contender.name for contender in CONTENDERS}
    if unknown := sorted(set(wanted) - known):
        raise ValueError(
            f"--only {','.join(unknown)}: no such contender; there are {', '.join(sorted(known))}"
        )
    return [contender for contender in CONTENDERS if contender.name in wanted]
