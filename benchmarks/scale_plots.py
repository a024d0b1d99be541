"""Pictures of what ``scale.py`` saved: how each stage grows, and what more nodes bring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

COLOURS: Final = ("#4c72b0", "#55a868", "#c44e52", "#8172b2", "#937860", "#da8bc3", "#64b5cd")


def draw(documents: Sequence[dict[str, Any]], folder: Path) -> None:
    """Draw ``scale-stages.png`` and ``scale-nodes.png``, each where there is something to draw.

    The first needs ``costs`` and ``runs``, the second ``nodes``.

    Args:
        documents: what ``scale.py`` saved; results of the same kind are drawn together.
        folder: where the pictures go.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    costs = [result for one in documents if one["what"] == "costs" for result in one["results"]]
    runs = [
        result for one in documents if one["what"] in ("runs", "nodes") for result in one["results"]
    ]
    nodes = [(one["arguments"], one["results"]) for one in documents if one["what"] == "nodes"]
    if costs and runs:
        _draw_stages(costs, runs, folder / "scale-stages.png")
    if nodes:
        _draw_nodes(nodes, folder / "scale-nodes.png")


def _draw_stages(
    costs: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]], path: Path
) -> None:
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    costs = sorted(costs, key=lambda result: result["num_images"])
    for stage, colour in zip(costs[0]["cpu_seconds"], COLOURS, strict=True):
        done = [result for result in costs if result["cpu_seconds"][stage] > 0]  # none is merged
        spent = [1e6 * result["cpu_seconds"][stage] / result["num_images"] for result in done]
        sizes = [result["num_images"] for result in done]
        left.loglog(sizes, spent, "o-", label=stage, color=colour)
    left.set(xlabel="images", ylabel="µs of CPU an image", title="what each stage costs")
    left.grid(alpha=0.3)
    left.set_ylim(0.1, None)
    left.legend(fontsize=8, loc="lower left", ncols=2)
    runs = sorted(runs, key=lambda result: result["counts"]["shards"])
    shards = [result["counts"]["shards"] for result in runs]
    memory = [result["driver_rss_peak_bytes"] / 2**20 for result in runs]
    right.semilogx(shards, memory, "o-", color=COLOURS[0], label="driver, peak")
    right.axhline(1e9 / 2**20, color="#999999", linestyle="--", label="1 GB")
    right.set(xlabel="shards", ylabel="MiB", title="memory of the driver", ylim=(0, None))
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
        counts = results[0]["counts"]
        each = counts["listed"] // counts["shards"]
        name = f"shards of {each:,}, pixels of {arguments['side_px']} px"
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
        axes.set_xticks(sorted({one["asked"]["nodes"] for _, results in runs for one in results}))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
