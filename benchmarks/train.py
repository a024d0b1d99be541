"""How fast does ``jobs.train`` train here, beside the bare model and a script written by hand?

Every contender trains for one epoch and then for more, as two processes. Steady images/s are the
images of the further epochs over the seconds between: what does not grow with them (starting Python
and Ray, decoding once) cancels for all alike, and nobody is asked to measure itself. Ours validates
on a few images and saves a checkpoint after every epoch, and that counts against it.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import platform
import shutil
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.command import in_a_folder
from benchmarks.material import jpegs
from benchmarks.processes import run
from bloodcells.augment import Augmentation, augment, image_keys
from bloodcells.augment.geometry import with_margin
from bloodcells.cells import CLASSES
from bloodcells.imaging import Preprocess, decode
from bloodcells.storage import name_of

ROOT: Final = Path(__file__).parents[1]
PREPROCESS: Final = Preprocess(size=96, crop=0.65)
VALIDATION_A_CLASS: Final = 2
TARGETS: Final = {
    "efficientnetv2_m": ("ours / best bare", 0.85),
    "tf_efficientnet_lite0": ("ours / plain", 1.5),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line; returns the exit code."""
    flags = _parser().parse_args(argv)
    return in_a_folder("train", flags.work, lambda work: measure(flags, work))


def measure(flags: argparse.Namespace, work: Path) -> None:
    """Time all contenders in turn, print a table and save every raw time."""
    num_images = prepare(flags, work)
    commands = contenders(flags, work)
    rounds: list[dict[str, dict[int, float]]] = []
    for number in range(flags.rounds):
        seconds: dict[str, dict[int, float]] = {}
        for name, command in commands.items():
            for epochs in (1, 1 + flags.more_epochs):
                seconds.setdefault(name, {})[epochs] = _time(name, command, epochs, flags, work)
                print(
                    f"round {number + 1}  {name:<14} {epochs} epochs "
                    f"{seconds[name][epochs]:8.1f} s",
                    file=sys.stderr,
                    flush=True,
                )
        rounds.append(seconds)
    shown = num_images * flags.more_epochs
    speeds = {
        name: [shown / (s[name][1 + flags.more_epochs] - s[name][1]) for s in rounds]
        for name in commands
    }
    ratios = {
        f"ours / {name}": [a / b for a, b in zip(speeds["ours"], speeds[name], strict=True)]
        for name in commands
        if name != "ours"
    }
    bare = [max(pair) for pair in zip(*(speeds[n] for n in speeds if "bare" in n), strict=True)]
    if bare:
        ratios["ours / best bare"] = [a / b for a, b in zip(speeds["ours"], bare, strict=True)]
    print(f"\n{flags.model}, {num_images:,} images an epoch, {os.cpu_count()} cores\n")
    for name, values in speeds.items():
        print(f"{name:<24} {_spread(values)} images/s")
    for name, values in ratios.items():
        print(f"{name:<24} {_spread(values, 2)}")
    if flags.json:
        _save(flags, num_images, rounds, speeds, ratios)


def contenders(flags: argparse.Namespace, work: Path) -> dict[str, list[str]]:
    """Return the command of each contender, but for ``--epochs``."""
    python = [sys.executable, "-m"]
    bare = [
        *(*python, "benchmarks.contenders.train_bare", "--model", flags.model),
        *("--pixels", str(work / "pixels.npy"), "--labels", str(work / "labels.npy")),
    ]
    every = {
        "ours": [
            *(*python, "jobs.train", "--dataset", str(work / "dataset"), "--from-scratch"),
            *("--model", flags.model, "--recipe", str(work / "recipe.json")),
            *("--out", str(work / "out")),
        ],
        "bare": bare,
        "bare_per_core": [*bare, "--processes", str(os.cpu_count())],
        "plain": [
            *(*python, "benchmarks.contenders.train_plain", "--model", flags.model),
            *("--images", str(work / "train")),
        ],
    }
    return {name: every[name] for name in every if not flags.only or name in flags.only.split(",")}


def prepare(flags: argparse.Namespace, work: Path) -> int:
    """Write JPEG files, a dataset and augmented pixels; returns the number of training images."""
    rows, pixels, labels = [], [], []
    num_validation = dict.fromkeys(CLASSES, 0)
    field = with_margin(PREPROCESS)
    labelled = (record for record in jpegs(flags.store) if record.member.label)
    for i, record in enumerate(itertools.islice(labelled, flags.images + 400)):
        label, data = record.member.label, record.data
        assert label is not None and isinstance(data, bytes)
        is_validation = num_validation[label] < VALIDATION_A_CLASS
        num_validation[label] += is_validation
        if not is_validation and len(labels) == flags.images:
            continue
        split = "val" if is_validation else "train"
        place = work / split / label / f"{i:06d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        rows.append((label, f"{label}/{place.name}", split))
        if not is_validation:
            pixels.append(decode(data, field).pixels)
            labels.append(CLASSES.index(label))
    with (work / "splits.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("shard", "member", "split"), *rows])
    keys = image_keys(
        0, 0, np.arange(len(labels), dtype=np.uint64), np.zeros(len(labels), np.int64)
    )
    views = augment(torch.from_numpy(np.stack(pixels)), PREPROCESS.size, Augmentation(), keys)
    np.save(work / "pixels.npy", views.numpy())
    np.save(work / "labels.npy", np.array(labels, np.int64))
    recipe = {
        "stages": [{"name": "all", "schedule": "constant", "learning_rate": 1e-5}],
        "balance": 0.0,
    }
    (work / "recipe.json").write_text(json.dumps(recipe))
    command = [
        *(sys.executable, "-m", "jobs.prepare", "--out", str(work / "dataset")),
        *("--store", str(work / "train"), "--store", str(work / "val")),
        *("--splits", str(work / "splits.csv"), "--keep", "blurred", "--keep", "alien"),
        *("--keep", "near_duplicate", "--keep", "conflicting_label", "--keep", "exact_duplicate"),
    ]
    run(command, env=_environment(), cwd=ROOT, log=work / "prepare.log", timeout_s=flags.timeout)
    return len(labels)


def _time(
    name: str, command: list[str], epochs: int, flags: argparse.Namespace, work: Path
) -> float:
    shutil.rmtree(work / "out", ignore_errors=True)
    return run(
        [*command, "--epochs", str(epochs)],
        env=_environment(),
        cwd=ROOT,
        log=work / f"{name}.log",
        timeout_s=flags.timeout,
    ).seconds


def _environment() -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return inherited | {"CUDA_VISIBLE_DEVICES": "", "RAY_USAGE_STATS_ENABLED": "0"}


def _spread(values: Sequence[float], digits: int = 1) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def _save(
    flags: argparse.Namespace,
    num_images: int,
    rounds: Sequence[dict[str, dict[int, float]]],
    speeds: dict[str, list[float]],
    ratios: dict[str, list[float]],
) -> None:
    arguments: dict[str, Any] = {
        key: value for key, value in vars(flags).items() if key not in ("json", "work")
    }
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": arguments | {"store": [name_of(uri) for uri in flags.store]},
        "machine": {"cores": os.cpu_count(), "system": platform.platform()},
        "versions": {name: version(name) for name in ("torch", "torchvision", "timm", "ray")},
        "images_an_epoch": num_images,
        "target": TARGETS.get(flags.model),
        "seconds_by_epochs": rounds,
        "images_per_s": speeds,
        "ratios": ratios,
    }
    flags.json.write_text(json.dumps(document, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--store", action="append", required=True, metavar="URI")
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--images", type=int, default=1920, help="training images an epoch")
    parser.add_argument("--more-epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", metavar="A,B", help="ours, bare, bare_per_core, plain")
    parser.add_argument("--json", type=Path, help="file for every raw time and ratio")
    parser.add_argument("--timeout", type=float, default=1800, help="most seconds of one process")
    parser.add_argument("--work", type=Path, help="folder for temporary files")
    return parser


if __name__ == "__main__":
    sys.exit(main())
