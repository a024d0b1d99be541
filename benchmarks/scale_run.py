"""One scoring run as ``scale.py`` measures it, a process of its own: prints what it cost as JSON.

    python -m benchmarks.scale_run '{"store": "…", "out": "…", …}'

The run is ``drive_run``'s, with its plan, its pipeline, its books and its report; only who reads
and who scores may be made to sleep.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import psutil
import ray
from ray.cluster_utils import Cluster

from benchmarks.run_files import table_files
from benchmarks.sleeping import sleeping_reader, sleeping_scorer
from bloodcells.accounting import PlannedShard
from bloodcells.bundle_facts import BundleFacts, shipped_bundle_uri, verified_apart
from bloodcells.pipeline.cluster import quieten_ray_data, start_ray
from bloodcells.pipeline.following import Follower
from bloodcells.pipeline.reading import Reader
from bloodcells.pipeline.run_drive import drive_run
from bloodcells.pipeline.run_request import SHIPPED, Crew, RunRequest
from bloodcells.pipeline.streaming import ScorerPool, score_planned
from bloodcells.publish import ShardOutcome
from bloodcells.report import gather, write_report
from bloodcells.runs import Run
from bloodcells.sites import NONE


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be measured.

    Attributes:
        store: the store's URI.
        out: the run folder.
        shard_size: most images in a shard.
        merged_bytes: what merged files have.
        nodes: fake nodes of one GPU each; 0 for this machine as it is, its cores scoring.
        node_cpus: cores that each fake node claims.
        scorers: scorers, where there are no fake nodes.
        real: whether the model scores, or the scorers sleep.
        batch_seconds: what a batch of a sleeping scorer takes.
        image_seconds: what an image of a sleeping reader takes; ``None`` for readers that read.
        side_px: side of the pixels that sleeping readers send.
    """

    store: str
    out: str
    shard_size: int
    merged_bytes: int
    nodes: int = 0
    node_cpus: int = 2
    scorers: int = 2
    real: bool = False
    batch_seconds: float = 0.0
    image_seconds: float | None = None
    side_px: int = 96


LOOK_EVERY_S: Final = 1.0

USERS: Final = {
    "driver": "driver",
    "gcs_server": "control store",
    "raylet": "raylets",
    "workers": "workers",
}
"""What processes are called, and what they are."""


class Stopwatch(Follower):
    """Notes when scoring began and ended, and what the processes had taken until then."""

    def __init__(self) -> None:
        self.marks: dict[str, dict[str, float]] = {}
        self._seconds: dict[tuple[str, int], float] = {}

    def scoring(self, run: Run, num_done: int) -> None:
        self.marks["scoring"] = self.marks["scored"] = self.usage()

    def entered(self, run: Run, outcome: ShardOutcome) -> None:
        """Look now and then: when scoring has ended, its workers are gone already."""
        scored, listed = run.counts["scored"], run.counts["listed"]
        if scored == listed or time.perf_counter() - self.marks["scored"]["at"] > LOOK_EVERY_S:
            self.marks["scored"] = self.usage()

    def usage(self) -> dict[str, float]:
        """Return CPU seconds so far: of this process, the control store, raylets and workers.

        A worker that has ended since it was last looked at counts with what it had taken by then.
        """
        me = psutil.Process()
        self._seconds["driver", me.pid] = sum(me.cpu_times()[:2])
        for process in me.children(recursive=True):
            try:
                name, used = process.name(), sum(process.cpu_times()[:2])
            except psutil.Error:
                continue
            if name in ("gcs_server", "raylet"):
                self._seconds[name, process.pid] = used
            elif name.startswith("ray::"):
                self._seconds["workers", process.pid] = used
        total = dict.fromkeys(USERS.values(), 0.0)
        for (name, _), used in self._seconds.items():
            total[USERS[name]] += used
        return {**total, "at": time.perf_counter()}


def main() -> int:
    """Measure from the command line."""
    content = json.loads(sys.argv[1])
    asked = Asked(**{field.name: content[field.name] for field in fields(Asked)})
    print(json.dumps(measure(asked)))
    return 0


def measure(asked: Asked) -> dict[str, Any]:
    """Run once; returns seconds, CPU seconds, memory, files and bytes."""
    watch = Stopwatch()
    with ExitStack() as ends:
        if asked.nodes:
            _start_nodes(asked, ends)
        else:
            start_ray()
        bundle = verified_apart(shipped_bundle_uri())
        request = RunRequest(
            stores=(asked.store,),
            out=asked.out,
            bundle=bundle,
            bundle_uri=shipped_bundle_uri(),
            bundle_origin=SHIPPED,
            site=NONE,
            shard_size=asked.shard_size,
            merged_bytes=asked.merged_bytes,
        )
        begun, before = time.perf_counter(), watch.usage()
        run = drive_run(request, lambda: _crew(asked, bundle), watch)
        seconds, after = time.perf_counter() - begun, watch.usage()
        report_begun = time.perf_counter()
        write_report(run.uri, gather(run.uri))
        report_seconds = time.perf_counter() - report_begun
        ray.shutdown()
    scoring, scored = watch.marks["scoring"], watch.marks["scored"]
    return {
        "asked": {**asdict(asked), "store": Path(asked.store).name, "out": None},
        "counts": run.counts,
        "seconds": round(seconds, 3),
        "timings": {**run.timings, "report_seconds": round(report_seconds, 3)},
        "cpu_seconds": _difference(before, after),
        "cpu_seconds_scoring": _difference(scoring, scored),
        "seconds_scoring": round(scored["at"] - scoring["at"], 3),
        "driver_rss_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "files": table_files(Path(asked.out)),
    }


def _crew(asked: Asked, bundle: BundleFacts) -> Crew:
    device = "cuda" if asked.nodes else "cpu"
    num_scorers = asked.nodes or asked.scorers
    pool = ScorerPool(
        min_size=num_scorers,
        max_size=num_scorers,
        device=device,
        compile_model=False,
        micro_batch=256 if asked.nodes else 32,
    )
    scorer = None if asked.real else sleeping_scorer(asked.batch_seconds, bundle)
    reader: type[Reader] = Reader
    if asked.image_seconds is not None:
        reader = sleeping_reader(asked.image_seconds, asked.side_px)

    def score(run: Run, wave: Sequence[PlannedShard]) -> Iterator[ShardOutcome]:
        return score_planned(
            run.uri,
            run.run_id,
            wave,
            bundle_uri=shipped_bundle_uri(),
            preprocess=bundle.preprocess,
            site=None,
            pool=pool,
            reader=reader,
            scorer=scorer,
        )

    return Crew(
        device=device,
        micro_batch=pool.micro_batch,
        compiled=False,
        planning_cpus=1,
        description=f"{num_scorers} scorers",
        score=score,
    )


def _start_nodes(asked: Asked, ends: ExitStack) -> None:
    """Start a head without work and nodes that claim cores and a GPU each, all on this machine."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # with none visible a node may claim none
    store_bytes = 512 * 2**20
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": store_bytes},
    )
    ends.callback(cluster.shutdown)
    for _ in range(asked.nodes):
        cluster.add_node(
            num_cpus=asked.node_cpus, num_gpus=1, object_store_memory=store_bytes, wait=False
        )
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    quieten_ray_data()


def _difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: round(after[name] - before[name], 3) for name in before if name != "at"}


if __name__ == "__main__":
    sys.exit(main())
