"""What each stage of a run costs in seconds of CPU, in one process and without Ray.

    python -m benchmarks.scale_costs STORE RUN SHARD_SIZE MERGED_BYTES

Prints JSON. CPU seconds change little with what else a machine does, and add up over the cores of a
cluster; a stage that sleeps or waits for a disk costs less of them than time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.run_files import table_files
from benchmarks.sleeping import made_up_scores
from bloodcells.accounting import planned_shards, require_all_accounted
from bloodcells.bundle_facts import BundleFacts, shipped_bundle_uri, verified_apart
from bloodcells.loading import load_shard
from bloodcells.merging import groups_to_merge, merge_group
from bloodcells.pipeline.planning import Cuts, write_plan
from bloodcells.publish import publish_shard, read_planned
from bloodcells.report import gather, write_report
from bloodcells.runs import Run, RunSettings
from bloodcells.slides import write_slides
from bloodcells.stores import open_store

STAGES = ("plan", "read and decode", "publish", "account", "slides", "merge", "report")


def main() -> int:
    """Measure from the command line."""
    store, out, shard_size, merged_bytes = sys.argv[1:]
    print(json.dumps(measure(store, out, int(shard_size), int(merged_bytes))))
    return 0


def measure(store: str, out: str, shard_size: int, merged_bytes: int) -> dict[str, Any]:
    """Take a store through all stages; returns CPU and wall seconds of each."""
    bundle = verified_apart(shipped_bundle_uri())
    cpu = dict.fromkeys(STAGES, 0.0)
    wall = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        begun, begun_at = time.process_time(), time.perf_counter()
        yield
        cpu[name] += time.process_time() - begun
        wall[name] += time.perf_counter() - begun_at

    run = _run(store, out, bundle, shard_size)
    with stage("plan"):
        for source in open_store(store).sources():
            counts = write_plan(out, source, Cuts(shard_size, None, None), None)
            run.counts["listed"] = run.counts.get("listed", 0) + counts.num_images
    run.status = "running"
    run.save()
    num_shards = num_bytes = 0
    first = next(planned_shards(out))
    load_shard(read_planned(first.plan_uri, first.plan_row), bundle.preprocess)  # what it imports
    for planned in planned_shards(out):
        with stage("read and decode"):
            loaded = load_shard(read_planned(planned.plan_uri, planned.plan_row), bundle.preprocess)
        scores = made_up_scores(loaded, bundle)
        with stage("publish"):
            publish_shard(out, loaded.shard_id, scores, loaded.quarantine)
        num_shards += 1
        num_bytes += loaded.bytes_read
    with stage("account"):
        found = require_all_accounted(out)
    with stage("slides"):
        write_slides(out, bundle.calibration)
    run.merging = True
    run.save()
    parts = table_files(Path(out))
    with stage("merge"):
        for group in groups_to_merge(out, merged_bytes):
            merge_group(out, run.run_id, group)
    run.status = "complete"
    run.save()
    with stage("report"):
        write_report(out, gather(out))
    return {
        "num_images": found.scored + found.quarantined,
        "num_shards": num_shards,
        "bytes_read": num_bytes,
        "cpu_seconds": {name: round(seconds, 3) for name, seconds in cpu.items()},
        "wall_seconds": {name: round(seconds, 3) for name, seconds in wall.items()},
        "files_before_merge": parts,
        "files": table_files(Path(out)),
    }


def _run(store: str, out: str, bundle: BundleFacts, shard_size: int) -> Run:
    settings = RunSettings(
        stores=(store,),
        bundle_digest=bundle.digest,
        site_digest=None,
        precision="float32",
        micro_batch=32,
        compiled=False,
        shard_size=shard_size,
        slide_pattern=None,
        since=None,
    )
    run = Run(uri=out, settings=settings, bundle={"model_name": bundle.model_name})
    run.save()
    return run


if __name__ == "__main__":
    sys.exit(main())
