"""Pictures of what ``scale.py`` saved: how each stage grows, and what more nodes bring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

STAGES: Final = ("plan", "scoring", "account", "slides", "merge", "report")
COLOURS: Final = ("#4c72b0", "#55a868", "#c44e52", "#8172b2", "#937860", "#da8bc3")


def draw(documents: Sequence[dict[str, Any]], folder: Path) -> None:
    """Draw ``scale-stages.png`` and ``scale-nodes.png``, each where there is something to draw.

    Args:
        documents: what ``scale.py`` saved; results of the same kind are drawn together.
        folder: where the pictures go.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    stages = [result for one in documents if one["what"] == "stages" for result in one["results"]]
    nodes = [(one["arguments"], one["results"]) for one in documents if one["what"] == "nodes"]
    if stages:
        _draw_stages(stages, folder / "scale-stages.png")
    if nodes:
        _draw_nodes(nodes, folder / "scale-nodes.png")


def _draw_stages(results: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    ordered = sorted(results, key=lambda result: result["num_images"])
    sizes = [result["num_images"] for result in ordered]
    for stage, colour in zip(STAGES, COLOURS, strict=True):
        seconds = [max(result["timings"][f"{stage}_seconds"], 1e-3) for result in ordered]
        left.loglog(sizes, seconds, "o-", label=stage, color=colour)
    left.set(xlabel="images", ylabel="seconds", title="what each stage takes")
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    memory = [result["driver_rss_peak_bytes"] / 2**20 for result in ordered]
    right.semilogx(sizes, memory, "o-", color=COLOURS[0], label="driver, peak")
    right.axhline(1024, color="#999999", linestyle="--", label="1 GiB")
    right.set(xlabel="images", ylabel="MiB", title="memory of the driver", ylim=(0, None))
    right.grid(alpha=0.3)
    right.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_nodes(runs: Sequence[tuple[dict[str, Any], list[dict[str, Any]]]], path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    most = max(result["asked"]["nodes"] for _, results in runs for result in results)
    speed = float(runs[0][0]["images_per_second"])
    left.plot([1, most], [speed, most * speed], "--", color="#999999", label="what they could")
    for (arguments, results), colour in zip(runs, COLOURS, strict=False):
        name = f"shards of {arguments['shard_size']:,}, pixels of {arguments['side_px']} px"
        nodes = [result["asked"]["nodes"] for result in results]
        left.plot(
            nodes,
            [result["timings"]["images_per_second"] for result in results],
            "o-",
            color=colour,
            label=name,
        )
        cost = [
            1000 * result["cpu_seconds_scoring"]["driver"] / result["counts"]["shards"]
            for result in results
        ]
        right.plot(nodes, cost, "o-", color=colour, label=name)
    left.set(xlabel="fake nodes", ylabel="images/s", title="one machine plays all nodes")
    right.set(xlabel="fake nodes", ylabel="ms", title="CPU of the driver, a shard", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
