"""EfficientNetV2-M with Lion through the three published stages, here: what it shows, and no more.

Nobody's pretrained weights are on a machine without internet, so without ``--weights`` the first
training makes a file of weights from random ones. The second starts from that file, the way a
person would from the hub's, and goes through ``head``, ``keras:150`` and ``keras:400``. A third
does the same and is killed (SIGKILL) in the middle; the same command goes on, and its curve is
compared with the second's. Prints the loss of each stage, peak memory, and how far the curves are
apart.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.command import in_a_folder
from benchmarks.processes import run

ROOT: Final = Path(__file__).parents[1]
SHARED: Final = {
    "batch_size": 16,
    "balance": 0.0,
    "label_smoothing": 0.0,
    "dropout": 0.2,
    "augmentation": "report",
}


def recipes(epochs: int) -> dict[str, dict[str, Any]]:
    """Return what makes the weights, and the published stages with fewer epochs."""
    lion = {"optimizer": "lion", "schedule": "constant", "epochs": epochs}
    frozen = {**lion, "train_batch_norm": False}
    return {
        "weights": SHARED | {"stages": [{"name": "from nothing", **lion, "averaging": 0.98}]},
        "stages": SHARED
        | {
            "stages": [
                {"name": "head", "unfreeze": "head", "weight_decay": 0.015, **frozen}
                | {"learning_rate": 1e-4},
                {"name": "last 150", "unfreeze": "keras:150", "weight_decay": 5e-3, **frozen}
                | {"learning_rate": 1e-4},
                {"name": "last 400", "unfreeze": "keras:400", "weight_decay": 2e-4, **frozen}
                | {"learning_rate": 3e-6},
            ]
        },
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run it from the command line; returns the exit code."""
    flags = _parser().parse_args(argv)
    return in_a_folder("flagship", flags.work, lambda work: _measure_and_save(flags, work))


def _measure_and_save(flags: argparse.Namespace, work: Path) -> None:
    document = measure(flags, work)
    if flags.json:
        flags.json.write_text(json.dumps(document, indent=2) + "\n")


def measure(flags: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train three times and print what came of it."""
    for name, recipe in recipes(flags.epochs).items():
        (work / f"{name}.json").write_text(json.dumps(recipe))
    trained: dict[str, dict[str, Any]] = {}
    weights = flags.weights or str(work / "from-nothing" / "weights.safetensors")
    if not flags.weights:
        trained["from nothing"] = _train(flags, work, "from-nothing", ["--from-scratch"], "weights")
    straight = trained["from the file"] = _train(
        flags, work, "straight", ["--weights", weights], "stages"
    )
    killed_at = _kill_in_the_middle(flags, work, "killed", ["--weights", weights], "stages")
    resumed = _train(flags, work, "killed", ["--weights", weights], "stages")
    apart = np.abs(np.array(straight["losses"]) - np.array(resumed["losses"]))
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": {"size": flags.size, "epochs": flags.epochs, "own weights": not flags.weights},
        "recipes": recipes(flags.epochs),
        **trained,
        "killed after step": killed_at,
        "resumed": resumed,
        "largest difference of a step's loss": float(apart.max()),
    }
    for name, training in trained.items():
        for stage in training["stages"]:
            print(
                f"{name}, stage {stage['name']}: {stage['steps']} steps, mean loss of the first "
                f"and last tenth {stage['first']:.3f} → {stage['last']:.3f}, validation accuracy "
                f"{stage['val_accuracy']:.3f}"
            )
        print(f"{name}: peak memory of all workers {training['workers_gib']:.1f} GiB (USS)")
    print(
        f"killed after step {killed_at} of {len(straight['losses'])} and resumed: the loss of no "
        f"step differs by more than {apart.max():.2g}"
    )
    return document


def _command(flags: argparse.Namespace, work: Path, out: str, more: list[str], recipe: str) -> Any:
    return [
        *(sys.executable, "-m", "jobs.train", "--dataset", flags.dataset, "--out", str(work / out)),
        *("--model", "efficientnetv2_m", "--recipe", str(work / f"{recipe}.json")),
        *("--size", str(flags.size), "--checkpoint-minutes", "1", *more),
    ]


def _train(
    flags: argparse.Namespace, work: Path, out: str, more: list[str], recipe: str
) -> dict[str, Any]:
    finished = run(
        _command(flags, work, out, more, recipe),
        env=_environment(),
        cwd=ROOT,
        log=work / f"{out}.log",
        timeout_s=flags.timeout,
    )
    history = json.loads((work / out / "training" / "training.json").read_text())["history"]
    return {
        "stages": [_stage(history, number) for number in sorted({e["stage"] for e in history})],
        "losses": [loss for epoch in history for loss in epoch["step_losses"]],
        "workers_gib": round(finished.workers_uss_bytes / 2**30, 2),
        "driver_gib": round(finished.driver_rss_bytes / 2**30, 2),
        "seconds": round(finished.seconds, 1),
    }


def _stage(history: list[dict[str, Any]], number: int) -> dict[str, Any]:
    own = [epoch for epoch in history if epoch["stage"] == number]
    losses = [loss for epoch in own for loss in epoch["step_losses"]]
    tenth = max(1, len(losses) // 10)
    return {
        "name": own[0]["stage_name"],
        "steps": len(losses),
        "first": float(np.mean(losses[:tenth])),
        "last": float(np.mean(losses[-tenth:])),
        "val_accuracy": own[-1]["val_accuracy"],
    }


def _kill_in_the_middle(
    flags: argparse.Namespace, work: Path, out: str, more: list[str], recipe: str
) -> int:
    """Kill a training once it is in its second stage; returns the steps of its checkpoint."""
    with (work / "killed.log").open("wb") as log:
        process = subprocess.Popen(
            _command(flags, work, out, more, recipe),
            env=_environment(),
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    record = work / out / "training" / "training.json"
    deadline = time.monotonic() + flags.timeout
    while time.monotonic() < deadline and process.poll() is None:
        history = json.loads(record.read_text())["history"] if record.exists() else []
        if history and history[-1]["stage"] == 1:
            break
        time.sleep(0.5)
    time.sleep(3)  # into the next epoch
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(15)  # its Ray ends by itself
    checkpoint = max(record.parent.glob("checkpoint-*.pt"))
    return int(checkpoint.stem.partition("-")[2])


def _environment() -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return inherited | {"CUDA_VISIBLE_DEVICES": "", "RAY_USAGE_STATS_ENABLED": "0"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.flagship", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--dataset", required=True, help="what jobs.prepare made")
    parser.add_argument("--weights", help="file or bundle to start from, URI")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures, in px")
    parser.add_argument("--epochs", type=int, default=2, help="of every stage")
    parser.add_argument("--json", type=Path, help="file for everything that was measured")
    parser.add_argument("--timeout", type=float, default=3600, help="most seconds of one training")
    parser.add_argument("--work", type=Path, help="folder for temporary files")
    return parser


if __name__ == "__main__":
    sys.exit(main())
