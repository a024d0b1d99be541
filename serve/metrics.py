"""What Prometheus is told: counts, times and the queue, of all replicas.

A replica reports through Ray, which exports the numbers of a node's processes together;
``/metrics`` gathers the nodes' exports, so that it does not matter which replica is asked.
"""

import asyncio
from collections import defaultdict
from typing import Any, Final

import ray
from aiohttp import ClientError, ClientSession, ClientTimeout
from fastapi import APIRouter, Depends
from ray.util.metrics import Counter, Gauge, Histogram
from starlette.responses import PlainTextResponse

from bloodcells.errors import ImageError
from serve.batching import Answer, Batcher
from serve.doors import Doors

TOLD: Final = ("ray_bloodcells_", "ray_serve_", "serve_")
NODE_TIMEOUT_S: Final = 5.0
_SECONDS: Final = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]


class Metrics:
    """The numbers of one replica."""

    def __init__(self) -> None:
        self._images = Counter(
            "bloodcells_images", "images answered, by what became of them", ("outcome",)
        )
        self._seconds = Histogram(
            "bloodcells_classify_seconds", "seconds from request to scores", _SECONDS
        )
        self._queue = Gauge("bloodcells_queue_images", "images that wait or are being scored")
        self._rate = Gauge("bloodcells_images_per_second", "speed of this replica while it works")

    def count(self, answers: list[Answer], seconds: float) -> None:
        """Count a request's answers."""
        faults = sum(isinstance(answer, ImageError) for answer in answers)
        for outcome, number in (("scored", len(answers) - faults), ("refused", faults)):
            if number:
                self._images.inc(number, {"outcome": outcome})
        self._seconds.observe(seconds)

    def watch(self, batcher: Batcher) -> None:
        """Report the queue as it is now."""
        self._queue.set(batcher.num_waiting)
        self._rate.set(batcher.images_per_s)


def metrics_router(doors: Doors) -> APIRouter:
    """Return the route for Prometheus."""
    router = APIRouter(tags=["operation"])

    @router.get(
        "/metrics",
        dependencies=[Depends(doors.require())],
        response_class=PlainTextResponse,
        summary="Metrics of all replicas, for Prometheus",
    )
    async def metrics() -> PlainTextResponse:
        """Gather what the nodes export; a node that does not answer is left out."""
        exports = await asyncio.to_thread(_exports)
        async with ClientSession(timeout=ClientTimeout(NODE_TIMEOUT_S)) as session:
            texts = await asyncio.gather(*(_fetch(session, uri) for uri in exports))
        return PlainTextResponse(merged(texts), media_type="text/plain; version=0.0.4")

    return router


def merged(texts: list[str]) -> str:
    """Merge several expositions into one, each family once, only of the endpoint's own."""
    heads: dict[str, list[str]] = {}
    samples: defaultdict[str, list[str]] = defaultdict(list)
    for text in texts:
        family, here = "", []
        for line in text.splitlines():
            if line.startswith("# "):
                words = line.split(" ", 3)
                if words[2] != family:
                    family, here = words[2], heads.setdefault(words[2], [])
                if not any(words[1] == known.split(" ", 2)[1] for known in here):
                    here.append(line)
            elif line:
                samples[family].append(line)
    lines = [
        line
        for family in sorted(samples)
        if family.startswith(TOLD)
        for line in (*heads.get(family, ()), *samples[family])
    ]
    return "\n".join(lines) + "\n"


def _exports() -> list[str]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in nodes
        if node["Alive"] and node.get("MetricsExportPort")
    ]


async def _fetch(session: ClientSession, uri: str) -> str:
    try:
        async with session.get(uri) as response:
            return await response.text() if response.status == 200 else ""
    except (ClientError, TimeoutError):
        return ""
