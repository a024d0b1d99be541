"""Serving side by side: this endpoint, Ray Serve's and LitServe's recipes, and the bare model.

    python -m benchmarks.serve --store pbc-00.tar --json serve.json
    python -m benchmarks.serve --store pbc-00.tar --archives --json archives.json

Every server is a process of its own with the same bundle, is loaded by the same generator (see
``load``) with the same images, one a request, at several concurrencies, and is ended before the
next one starts. Rounds give everybody a turn. ``README.md`` in this folder says how to read it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import machine, serve_tables
from benchmarks.command import in_a_folder
from benchmarks.contenders import NUM_CORES
from benchmarks.contenders.serving import LIMIT, SERVERS, ServerContender, chosen, ours
from benchmarks.material import jpegs
from benchmarks.processes import run
from benchmarks.serve_archives import measure_archives
from benchmarks.serving import ROOT, Bench, started
from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.errors import ConfigurationError
from bloodcells.imaging import Picture, decode_batch
from bloodcells.scoring import Scorer
from bloodcells.storage import name_of

LEVELS: Final = (1, 16, 64, 256)
OVERLOAD_QUEUE: Final = 64
OVERLOAD_CLIENTS: Final = 1024
PACKAGES: Final = ("torch", "timm", "ray", "litserve", "pillow", "simplejpeg", "uvloop")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure from the command line; returns the exit code."""
    parser = _parser()
    flags = parser.parse_args(argv)
    try:
        names = chosen(flags.only)
    except ValueError as error:
        parser.error(str(error))
    return in_a_folder("serve", flags.work, lambda work: _measure_and_save(names, flags, work))


def _measure_and_save(names: Sequence[str], flags: argparse.Namespace, work: Path) -> None:
    found: dict[str, Any] = {"rounds": [], "overload": [], "archives": []}
    try:
        bench = prepare(flags, work)
        found["bundle_digest"] = ModelBundle.load(bench.bundle).digest
        if flags.archives:
            for _ in range(flags.rounds):
                found["archives"].append(measure_archives(bench, flags.archive_images))
            print(serve_tables.target_table(serve_tables.ARCHIVE_TARGETS, found["archives"]))
        else:
            measure(bench, names, flags, found)
    finally:
        _save(flags, found)


def measure(
    bench: Bench, names: Sequence[str], flags: argparse.Namespace, found: dict[str, Any]
) -> None:
    """Load everybody in turn, print tables, and leave all figures in ``found``.

    Raises:
        ContenderError: a server did not start, or the generator failed.
    """
    for _ in range(flags.rounds):
        figures: dict[str, Any] = {}
        found["rounds"].append(figures)
        if LIMIT in names:
            figures[LIMIT] = measure_limit(bench)
        for server in SERVERS:
            if server.name in names:
                figures[server.name] = load_server(bench, server, flags.levels)
        _save(flags, found)
    if "ours" in names and flags.overload:
        found["overload"] = overload(bench, serve_tables.best_speed(found["rounds"], "ours"))
    print(f"\n{NUM_CORES} cores ({machine.cpu_name()}), {flags.rounds} rounds: median (low–high)\n")
    print(serve_tables.table(found["rounds"]), end="\n\n")
    print(serve_tables.target_table(serve_tables.TARGETS, found["rounds"]), end="\n\n")
    print(serve_tables.overload_table(found["overload"]))


def measure_limit(bench: Bench) -> dict[str, Any]:
    """Return images/s of the machine without HTTP, and the bare time of one image."""
    ways = {
        "machine": ("--batch", "32", "--processes", str(NUM_CORES), "--threads", "1"),
        "single_one_thread": ("--batch", "1", "--threads", "1"),
        "single_all_threads": ("--batch", "1", "--threads", str(NUM_CORES)),
    }
    found = {}
    for name, flags in ways.items():
        out = bench.work / "limit.json"
        run(
            [
                *(sys.executable, "-m", "benchmarks.contenders.serve_limit"),
                *("--bundle", bench.bundle, "--images", str(bench.images)),
                *("--seconds", str(bench.seconds), "--out", str(out), *flags),
            ],
            env=machine.environment(),
            cwd=ROOT,
            log=bench.work / "limit.log",
            timeout_s=bench.timeout_s,
        )
        found[name] = json.loads(out.read_text())
        bench.say(f"limit  {name:<22}{found[name]['images_per_second']:>8.0f} images/s")
    return found


def load_server(
    bench: Bench, server: ServerContender, levels: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Start a server, load it at each concurrency, end it; returns the loads by concurrency."""
    found = {}
    with started(bench, server) as target:
        for concurrency in levels:
            load = target.load(concurrency=concurrency)
            found[str(concurrency)] = load
            bench.say(serve_tables.line(f"{server.name} at {concurrency}", load))
    return found


def overload(bench: Bench, speed: float | None) -> list[dict[str, Any]]:
    """Send ours more than it can do: as a rate, and from far more clients than its queue holds.

    Args:
        bench: what everybody works on.
        speed: images a second that it can do; ``None`` leaves the rate out.
    """
    queue = ("--queued-images", str(OVERLOAD_QUEUE))
    ways: dict[str, dict[str, Any]] = {
        f"{OVERLOAD_CLIENTS:,} clients that wait as told": {
            "concurrency": OVERLOAD_CLIENTS,
            "is_patient": True,
        }
    }
    if speed:
        ways["twice its speed, come what may"] = {"concurrency": 2048, "rate": 2 * speed}
    found = []
    with started(bench, ours(*queue)) as target:
        for name, plan in ways.items():
            load = target.load(**plan)
            found.append({"way": name, "queued_images": OVERLOAD_QUEUE, **load})
            bench.say(serve_tables.line(f"overload: {name}", load))
    return found


def prepare(flags: argparse.Namespace, work: Path) -> Bench:
    """Write the images, and what the model itself says of them.

    Raises:
        ConfigurationError: the stores hold no JPEG.
    """
    images = work / "images"
    images.mkdir()
    data = [record.data for record in itertools.islice(jpegs(flags.store), flags.images)]
    known = [item for item in data if isinstance(item, bytes)]
    if not known:
        raise ConfigurationError(f"{', '.join(flags.store)}: no JPEG image")
    for number, item in enumerate(known):
        (images / f"{number:06d}.jpg").write_bytes(item)
    bundle = ModelBundle.load(flags.bundle)
    pictures = decode_batch(known, bundle.preprocess, num_threads=NUM_CORES)
    pixels = np.stack([item.pixels for item in pictures if isinstance(item, Picture)])
    if len(pixels) < len(known):
        raise ConfigurationError(f"{', '.join(flags.store)}: an image cannot be decoded")
    np.save(work / "expected.npy", Scorer(bundle, device="cpu").probabilities(pixels))
    return Bench(
        work=work,
        images=images,
        expected=work / "expected.npy",
        bundle=flags.bundle,
        seconds=flags.seconds,
        warm_up_s=flags.warm_up,
        timeout_s=flags.timeout,
    )


def _save(flags: argparse.Namespace, found: dict[str, Any]) -> None:
    if flags.json is None:
        return
    arguments = {key: value for key, value in vars(flags).items() if key not in ("json", "work")}
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": arguments
        | {
            "store": [name_of(uri) for uri in flags.store],  # not where they lie
            "bundle": name_of(flags.bundle),
        },
        "machine": machine.facts(),
        "versions": machine.versions(PACKAGES),
        "servers": {server.name: server.what for server in SERVERS},
        "targets": [
            *serve_tables.judged(serve_tables.TARGETS, found["rounds"]),
            *serve_tables.judged(serve_tables.ARCHIVE_TARGETS, found["archives"]),
        ],
        **found,
    }
    flags.json.write_text(json.dumps(document, indent=2, default=str) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serve", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--store", action="append", required=True, metavar="URI", help="store of JPEGs; repeatable"
    )
    parser.add_argument("--images", type=int, default=2000, help="distinct images, sent in turn")
    parser.add_argument("--bundle", default=shipped_bundle_uri(), help="default: the shipped")
    parser.add_argument("--rounds", type=int, default=3, help="times that everybody has a turn")
    parser.add_argument("--seconds", type=float, default=15.0, help="of one measurement")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds of load before each")
    parser.add_argument(
        "--levels", type=_levels, default=LEVELS, metavar="1,16,64,256", help="concurrencies"
    )
    parser.add_argument("--only", metavar="A,B", help="whom to measure (default: all)")
    parser.add_argument(
        "--overload",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also send ours more than it can do",
    )
    parser.add_argument(
        "--archives", action="store_true", help="measure archives instead, against jobs.score"
    )
    parser.add_argument("--archive-images", type=int, default=50_000, help="images of the archive")
    parser.add_argument("--json", type=Path, help="file for every figure")
    parser.add_argument("--timeout", type=float, default=900, help="most seconds of one process")
    parser.add_argument("--work", type=Path, help="folder for temporary files")
    return parser


def _levels(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
