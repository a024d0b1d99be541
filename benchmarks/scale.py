"""What a run costs as it grows: each stage from a thousand to a million images, and more nodes.

    python -m benchmarks.scale costs --tiny zip --images 1000,10000,100000 --json costs.json
    python -m benchmarks.scale runs --real --images 10000,100000 --json runs.json
    python -m benchmarks.scale runs --tiny parquet --images 1000000 --json million.json
    python -m benchmarks.scale nodes --nodes 1,2,4,8 --json nodes.json
    python -m benchmarks.scale plan --images 1000000 --json plan.json
    python -m benchmarks.scale plots --json costs.json --json nodes.json --out docs/images

``costs`` takes stores of growing size through each stage in one process, and counts CPU seconds;
``runs`` makes whole runs of them on this machine, of cells as large as real ones or tiny; ``nodes``
makes one size of run on more and more fake nodes, whose readers and scorers sleep as long as others
take; ``plan`` measures listing and planning alone. ``README.md`` in this folder says how to read
what they print.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks import machine, scale_plan, scale_plots
from benchmarks.command import in_a_folder
from benchmarks.processes import ContenderError, Finished, run
from benchmarks.scale_run import Asked
from benchmarks.tiny_stores import write_cells, write_store
from bloodcells.cells import CLASSES
from bloodcells.synthetic import draw_cell, encode_jpeg

ROOT: Final = Path(__file__).parents[1]
PACKAGES: Final = ("ray", "pyarrow", "torch")

GPU_IMAGES_A_SECOND: Final = 8320.0
"""What a sleeping scorer stands for: tf_efficientnet_lite0 at 224 px on an RTX 3090, AMP, channels
last. Not measured here. Source: timm, results/benchmark-infer-amp-nhwc-pt240-cu124-rtx3090.csv."""

IMAGE_SECONDS: Final = 0.0002
"""What a sleeping reader takes an image: so the two of a node stand for five cores, each of which
reads and decodes a JPEG of 360 px in 0.5 ms. A process for each would not fit this machine."""

CELL_PX: Final = 360
NUM_CELLS: Final = 512
GPU_BATCH: Final = 256


def main(argv: Sequence[str] | None = None) -> int:
    """Measure from the command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.what == "plots":
        scale_plots.draw([json.loads(path.read_text()) for path in arguments.json], arguments.out)
        return 0
    measure: Callable[[argparse.Namespace, Path], None] = {
        "costs": measure_costs,
        "runs": measure_runs,
        "nodes": measure_nodes,
        "plan": measure_plan,
    }[arguments.what]
    return in_a_folder("scale", arguments.work, lambda work: measure(arguments, work))


def measure_costs(arguments: argparse.Namespace, work: Path) -> None:
    """Take a store of each size through all stages in a process of its own; prints and saves."""
    results: list[dict[str, Any]] = []
    for num_images in arguments.images:
        store = _store(arguments, work, num_images)
        merged_bytes = arguments.merged_mb * 2**20
        asked = [str(store), str(work / "run"), str(arguments.shard_size), str(merged_bytes)]
        results.append(_said("benchmarks.scale_costs", asked, arguments, work)[0])
        _save(arguments, results)
        shutil.rmtree(store)
        shutil.rmtree(work / "run")
        print(cost_line(results[-1]), flush=True)


def measure_runs(arguments: argparse.Namespace, work: Path) -> None:
    """Make a run of each size; prints after each and saves what it has."""
    results: list[dict[str, Any]] = []
    for num_images in arguments.images:
        store = _store(arguments, work, num_images)
        asked = Asked(
            store=str(store),
            out=str(work / "run"),
            shard_size=arguments.shard_size,
            merged_bytes=arguments.merged_mb * 2**20,
            scorers=arguments.scorers,
            real=arguments.real,
            batch_seconds=32 / arguments.images_per_second,
        )
        results.append(_run_once(asked, arguments, work) | {"num_images": num_images})
        _save(arguments, results)
        shutil.rmtree(store)
        print(run_line(results[-1]), flush=True)


def measure_nodes(arguments: argparse.Namespace, work: Path) -> None:
    """Make the same run, grown with the nodes, on each number of fake nodes."""
    results: list[dict[str, Any]] = []
    for num_nodes in arguments.nodes:
        num_images = arguments.images_a_node * num_nodes
        store = work / f"store-{num_nodes}"
        write_store(store, num_images, "parquet")
        asked = Asked(
            store=str(store),
            out=str(work / "run"),
            shard_size=arguments.shard_size,
            merged_bytes=arguments.merged_mb * 2**20,
            nodes=num_nodes,
            node_cpus=arguments.node_cpus,
            batch_seconds=GPU_BATCH / arguments.images_per_second,
            image_seconds=arguments.image_seconds,
            side_px=arguments.side_px,
        )
        results.append(_run_once(asked, arguments, work) | {"num_images": num_images})
        _save(arguments, results)
        shutil.rmtree(store)
        print(node_line(results[-1], arguments.images_per_second), flush=True)


def measure_plan(arguments: argparse.Namespace, work: Path) -> None:
    """List and plan stores of one file on one core, and read the plan back."""
    results = []
    for kind in ("parquet", "zip"):
        store = work / kind
        write_store(store, arguments.images[-1], kind)
        results.append(scale_plan.measure(kind, store, work / "run", arguments.shard_size))
        _save(arguments, results)
        shutil.rmtree(store)
        print(scale_plan.line(results[-1]), flush=True)


def _run_once(asked: Asked, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Make a run in a process of its own; returns what it printed, and its workers' memory.

    Raises:
        ContenderError: it failed, took too long, or did not score every image.
    """
    found, finished = _said("benchmarks.scale_run", [json.dumps(asdict(asked))], arguments, work)
    shutil.rmtree(asked.out)
    if found["counts"]["scored"] != found["counts"]["listed"]:
        raise ContenderError(f"{found['counts']}: not every image was scored")
    return found | {"workers_uss_bytes": finished.workers_uss_bytes}


def _said(
    module: str, asked: Sequence[str], arguments: argparse.Namespace, work: Path
) -> tuple[dict[str, Any], Finished]:
    """Run a module to its end; returns the JSON of its last line, and what it took."""
    log = work / "run.log"
    finished = run(
        [sys.executable, "-m", module, *asked],
        env=machine.environment(),
        cwd=ROOT,
        log=log,
        timeout_s=arguments.timeout,
    )
    return json.loads(log.read_text().strip().splitlines()[-1]), finished


def _store(arguments: argparse.Namespace, work: Path, num_images: int) -> Path:
    """Write a store of so many images, tiny or of a cell's usual size."""
    store = work / f"store-{num_images}"
    if arguments.tiny:
        write_store(store, num_images, arguments.tiny)
    else:
        write_cells(store, num_images, _cells(), images_a_file=10_000)
    return store


def _cells() -> list[bytes]:
    return [
        encode_jpeg(draw_cell(CLASSES[k % len(CLASSES)], k, size_px=CELL_PX))
        for k in range(NUM_CELLS)
    ]


def cost_line(result: dict[str, Any]) -> str:
    """Return one size's stages as a line: microseconds of CPU an image."""
    stages = "  ".join(
        f"{name} {1e6 * seconds / result['num_images']:.1f}"
        for name, seconds in result["cpu_seconds"].items()
    )
    return (
        f"{result['num_images']:>9,} images in {result['num_shards']:,} shards, µs of CPU an "
        f"image: {stages}"
    )


def run_line(result: dict[str, Any]) -> str:
    """Return one run as a line: seconds of each stage, and images a second of CPU of the scoring.

    A second of CPU is one core's, whatever else the machine does in the meantime.
    """
    timings = result["timings"]
    rate = result["num_images"] / sum(result["cpu_seconds_scoring"].values())
    stages = "  ".join(
        f"{name} {timings[f'{name}_seconds']:.2f} s"
        for name in ("plan", "scoring", "account", "slides", "merge", "report")
    )
    return (
        f"{result['num_images']:>9,} images  {stages}  {rate:,.0f} images a CPU second, "
        f"driver {result['driver_rss_peak_bytes'] / 2**20:,.0f} MiB"
    )


def node_line(result: dict[str, Any], images_per_second: float) -> str:
    """Return one run on fake nodes as a line: how much of the nodes' own speed it had."""
    nodes, timings = result["asked"]["nodes"], result["timings"]
    share = timings["images_per_second"] / (nodes * images_per_second)
    shards = result["counts"]["shards"]
    used = result["cpu_seconds_scoring"]
    costs = ", ".join(
        f"{name} {1000 * used[name] / shards:.1f} ms"
        for name in ("driver", "control store", "raylets")
    )
    return (
        f"{nodes:>3} nodes  {timings['images_per_second']:>9,.0f} images/s  {share:.2f} of theirs  "
        f"CPU a shard: {costs}"
    )


def _save(arguments: argparse.Namespace, results: Sequence[dict[str, Any]]) -> None:
    if arguments.json is None:
        return
    document = {
        "what": arguments.what,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": {
            key: value for key, value in vars(arguments).items() if key not in ("json", "work")
        },
        "machine": machine.facts(),
        "versions": machine.versions(PACKAGES),
        "results": list(results),
    }
    arguments.json.write_text(json.dumps(document, indent=2, default=str) + "\n")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=(__doc__ or "").splitlines()[0]
    )
    what = parser.add_subparsers(dest="what", required=True)
    costs = what.add_parser("costs", help="CPU seconds of each stage, in one process")
    runs = what.add_parser("runs", help="runs of growing size on this machine")
    for one in (costs, runs):
        one.add_argument("--images", type=_numbers, default=[1000, 10_000, 100_000])
        one.add_argument("--tiny", choices=("parquet", "zip"), help="tiny images, in such files")
    runs.add_argument("--real", action="store_true", help="score with the model; do not sleep")
    runs.add_argument("--scorers", type=int, default=2)
    runs.add_argument("--images-per-second", type=float, default=GPU_IMAGES_A_SECOND)
    nodes = what.add_parser("nodes", help="a run on more and more fake nodes")
    nodes.add_argument("--nodes", type=_numbers, default=[1, 2, 4, 8])
    nodes.add_argument("--images-a-node", type=int, default=100_000)
    nodes.add_argument("--node-cpus", type=int, default=2)
    nodes.add_argument("--side-px", type=int, default=96, help="of the pixels that are sent")
    nodes.add_argument("--image-seconds", type=float, default=IMAGE_SECONDS)
    nodes.add_argument("--images-per-second", type=float, default=GPU_IMAGES_A_SECOND)
    plan = what.add_parser("plan", help="listing and planning alone, on one core")
    plan.add_argument("--images", type=_numbers, default=[1_000_000])
    for one in (costs, runs, nodes, plan):
        one.add_argument("--shard-size", type=int, default=1000)
        one.add_argument("--json", type=Path, help="file to save everything in")
        one.add_argument("--work", type=Path, help="folder for temporary files")
        one.add_argument("--timeout", type=float, default=1800, help="most seconds of one run")
    for one in (costs, runs, nodes):
        one.add_argument("--merged-mb", type=int, default=256, help="MiB of a merged file")
    plots = what.add_parser("plots", help="draw what was saved")
    plots.add_argument("--json", type=Path, action="append", required=True)
    plots.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    return parser


if __name__ == "__main__":
    sys.exit(main())
