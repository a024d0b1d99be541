"""Listing and planning on one core, and what comes after without a scorer: the plan read back.

What ``planning`` does in its tasks and ``accounting`` in the driver, in this process; seconds are
of its CPU, so that a neighbour on the machine changes little.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, Final

from bloodcells import storage
from bloodcells.accounting import pending_waves, plan_size, planned_shards
from bloodcells.pipeline.planning import Cuts, write_plan
from bloodcells.publish import plan_files, read_planned
from bloodcells.records import Shard
from bloodcells.stores import open_store, plan_source

READ_BACK: Final = 50
"""Shards that are read back with their members."""


def measure(kind: str, store: Path, run: Path, shard_size: int) -> dict[str, Any]:
    """Plan a store; returns images and shards a second of CPU for each step."""
    sources = open_store(str(store)).sources()
    begun = time.process_time()
    num_images = sum(
        len(item.members)
        for source in sources
        for item in plan_source(source, shard_size=shard_size)
        if isinstance(item, Shard)
    )
    listed = time.process_time()
    for source in sources:
        write_plan(str(run), source, Cuts(shard_size, None, None), None)
    written = time.process_time()
    plan_bytes = sum(storage.stat(uri).size for uri in plan_files(str(run)))
    indexed_from = time.process_time()
    size = plan_size(str(run))
    for _ in pending_waves(str(run), set(), 4096):
        pass
    indexed = time.process_time()
    some = [shard for shard, _ in zip(planned_shards(str(run)), range(READ_BACK), strict=False)]
    read_from = time.process_time()
    num_read = sum(len(read_planned(one.plan_uri, one.plan_row).members) for one in some)
    read = time.process_time()
    shutil.rmtree(run)
    assert size.num_images == num_images
    return {
        "kind": kind,
        "num_images": num_images,
        "num_shards": size.num_shards,
        "plan_bytes": plan_bytes,
        "list_images_a_second": round(num_images / (listed - begun)),
        "plan_images_a_second": round(num_images / (written - listed)),
        "index_shards_a_second": round(2 * size.num_shards / (indexed - indexed_from)),
        "read_back_images_a_second": round(num_read / (read - read_from)),
    }


def line(result: dict[str, Any]) -> str:
    """Return what was measured as a line."""
    return (
        f"{result['kind']:<8} {result['num_images']:,} images in {result['num_shards']:,} shards: "
        f"listed {result['list_images_a_second']:,}/s, listed and written "
        f"{result['plan_images_a_second']:,}/s, index {result['index_shards_a_second']:,} "
        f"shards/s, read back {result['read_back_images_a_second']:,}/s; plan "
        f"{result['plan_bytes'] / 2**20:.1f} MiB"
    )
