"""Bulk scoring side by side: this project, the bare model, and what others would use.

    python -m benchmarks.bulk --store pbc-00.tar --model tf_efficientnet_lite0 --json bulk.json

Every contender (see ``contenders``) is timed as a whole process on the same files, in turn, over
several rounds. Each runs a small and a large number of images, and its steady speed is the
difference in images over the difference in seconds: start-up and compilation cancel out, for all
alike. ``README.md`` in this folder says how to read the table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from benchmarks import machine, tables
from benchmarks.command import in_a_folder
from benchmarks.contenders import Contender, Material, chosen
from benchmarks.material import prepare
from benchmarks.processes import ContenderError, run
from benchmarks.tables import Timing
from bloodcells.storage import name_of

ROOT: Final = Path(__file__).parents[1]
FIRST_START_IMAGES: Final = 64
"""Images of the first, cold start: enough that every stage and compiler has something to do."""

PACKAGES: Final = ("torch", "torchvision", "timm", "ray", "daft", "pyarrow", "pillow", "simplejpeg")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure from the command line; returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        contenders = chosen(arguments.only)
    except ValueError as error:
        parser.error(str(error))
    if not FIRST_START_IMAGES <= arguments.small_images < arguments.images:
        parser.error(
            f"--small-images {arguments.small_images}: give {FIRST_START_IMAGES} or more, "
            f"and less than --images {arguments.images}"
        )
    return in_a_folder("bulk", arguments.work, lambda work: measure(arguments, contenders, work))


def measure(arguments: argparse.Namespace, contenders: Sequence[Contender], work: Path) -> None:
    """Time the contenders in turn; prints after each round and saves after each process.

    Raises:
        ContenderError: one failed, or classified another number of images than it was given.
        BloodcellsError: the stores cannot be read.
    """
    sizes = (FIRST_START_IMAGES, arguments.small_images, arguments.images)
    _say(f"writing {arguments.images:,} images and a {arguments.model} bundle into {work}")
    prepared = prepare(arguments.store, sizes, arguments.model, work)
    timings: list[Timing] = []
    for number in range(arguments.rounds + 1):
        for contender in contenders:
            for num_images in sizes[1:] if number else sizes[:1]:
                material = replace(prepared.of(num_images), shard_size=arguments.shard_size)
                timing = time_one(contender, material, number, work, arguments.timeout)
                timings.append(timing)
                _save(arguments, contenders, timings)
                _say(
                    f"round {number}  {contender.name:<26}{num_images:>7,} images"
                    f"{timing.seconds:>9.2f} s"
                )
    print(
        f"\n{arguments.model}, {arguments.images:,} images, {os.cpu_count()} cores "
        f"({machine.cpu_name()}), {arguments.rounds} rounds: median (low–high)\n"
    )
    print(tables.table(contenders, timings), end="\n\n")
    print(tables.ratio_table(timings))


def time_one(
    contender: Contender, material: Material, number: int, work: Path, timeout_s: float
) -> Timing:
    """Run one contender once, and check that it classified every image.

    Raises:
        ContenderError: it failed, took too long, or left another number of rows.
    """
    out = work / "out"
    finished = run(
        contender.command(material, out),
        env=machine.environment()
        | {"TORCHINDUCTOR_CACHE_DIR": str(work / "inductor" / contender.name)},
        cwd=ROOT,
        log=work / f"{contender.name}.log",
        timeout_s=timeout_s,
    )
    rows = sum(pq.read_metadata(path).num_rows for path in out.glob(contender.tables))
    shutil.rmtree(out, ignore_errors=True)
    if rows != material.num_images:
        raise ContenderError(
            f"{contender.name}: {rows:,} rows for {material.num_images:,} images; nothing is "
            "compared that did not do the same work"
        )
    return Timing(
        contender=contender.name, round=number, num_images=material.num_images, **asdict(finished)
    )


def _save(
    arguments: argparse.Namespace, contenders: Sequence[Contender], timings: Sequence[Timing]
) -> None:
    if arguments.json is None:
        return
    ratios = {judged.what: tables.ratio(judged, timings) for judged in tables.JUDGED}
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": {
            **{key: value for key, value in vars(arguments).items() if key not in ("json", "work")},
            "store": [name_of(uri) for uri in arguments.store],  # not where they lie
        },
        "machine": machine.facts(),
        "versions": machine.versions(PACKAGES),
        "contenders": {contender.name: contender.what for contender in contenders},
        "summary": _plain(tables.summary(timings)),
        "ratios": {
            judged.what: {"target": judged.target, "value": _plain(ratios[judged.what])}
            for judged in tables.JUDGED
        },
        "timings": [asdict(timing) for timing in timings],
    }
    arguments.json.write_text(json.dumps(document, indent=2, default=str) + "\n")


def _plain(value: Any) -> Any:
    """Return spreads as dictionaries, however deep."""
    if isinstance(value, tables.Spread):
        return {key: round(number, 4) for key, number in asdict(value).items()}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bulk", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--store", action="append", required=True, metavar="URI", help="store of JPEGs; repeatable"
    )
    parser.add_argument("--images", type=int, default=5000, help="images of the large run")
    parser.add_argument("--small-images", type=int, default=1000, help="images of the small run")
    parser.add_argument("--model", default="tf_efficientnet_lite0", help="a timm architecture")
    parser.add_argument("--shard-size", type=int, default=256, help="of jobs.score, in images")
    parser.add_argument("--rounds", type=int, default=3, help="times that everybody has a turn")
    parser.add_argument("--only", metavar="A,B", help="contenders to measure (default: all)")
    parser.add_argument("--json", type=Path, help="file to save every raw time and ratio in")
    parser.add_argument("--timeout", type=float, default=1800, help="most seconds of one process")
    parser.add_argument("--work", type=Path, help="folder for temporary files")
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
