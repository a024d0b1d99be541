"""The endpoint: one replica holds the model, scores what comes in, and answers for everything else.

A replica serves HTTP itself. It scores single cells in a thread beside its event loop, and hands
archive runs to deployments of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import Any, Final

from fastapi import APIRouter
from ray import serve
from starlette.types import ASGIApp

from bloodcells.allocator import keep_freed_memory
from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.scoring import Scorer, default_device
from serve.api import create_api
from serve.archive_desk import ArchiveDesk
from serve.archive_poke import poking
from serve.archive_routes import archive_router
from serve.batching import CPU_SIZES, GPU_SIZES, Batcher
from serve.classify import Classifier, classify_router
from serve.doors import Doors, read_tokens
from serve.explaining import Explainer
from serve.metrics import Metrics, metrics_router
from serve.page_routes import page_router
from serve.review_routes import review_router
from serve.settings import ServeSettings, read_sites

WATCH_S: Final = 2.0


@serve.ingress()
class Endpoint:
    """One replica of the endpoint.

    Args:
        settings: what the operator decided, as plain values.
        keeper: Serve's handle of the keeper of archive runs.
    """

    def __init__(self, settings: dict[str, Any], keeper: Any) -> None:
        keep_freed_memory()
        self.settings = ServeSettings(**settings)
        limits = self.settings.limits
        self.doors = Doors(
            read_tokens(self.settings.tokens_file),
            origins=self.settings.origins,
            secure_cookies=self.settings.secure_cookies,
        )
        self.bundle = ModelBundle.load(self.settings.bundle or shipped_bundle_uri())
        self.sites = read_sites(self.settings.sites, self.bundle.digest)
        on_gpu = default_device() == "cuda"
        scorer = Scorer(
            self.bundle,
            num_threads=None if on_gpu else 1,
            padded_sizes=GPU_SIZES if on_gpu else CPU_SIZES,
        )
        scorer.warm_up()  # Serve sends nothing before this is done
        self.batcher = Batcher(
            scorer, max_queued=limits.queued_images, decode_threads=8 if on_gpu else 1
        )
        self.metrics = Metrics()
        self.explainer = Explainer(self.bundle, most_waiting=8 * limits.explained_images)
        self.desk = ArchiveDesk(self.settings, self.bundle, poking(keeper))
        gc.freeze()  # what is loaded stays: no collection need walk it

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the web application; Serve asks for it once the replica is ready."""
        classifier = Classifier(
            self.bundle,
            self.batcher,
            self.explainer,
            self.settings.limits,
            self.metrics,
            self.sites,
        )
        routers = [
            classify_router(classifier, self.doors),
            archive_router(self.desk, self.doors),
            review_router(self.desk.run_uri, self.doors, self.desk.calibration_of),
            page_router(),
            metrics_router(self.doors),
            self._health_router(),
        ]
        return create_api(routers, self.doors)

    def check_health(self) -> None:
        """Tell Serve whether this replica works; one that does not is replaced."""
        self.batcher.require_alive()

    def __del__(self) -> None:
        """Answer what waits before the replica goes."""
        with contextlib.suppress(AttributeError):  # its start failed
            self.batcher.close()

    def _health_router(self) -> APIRouter:
        router = APIRouter(tags=["operation"])

        @router.get("/healthz", summary="Alive")
        async def healthy() -> dict[str, str]:
            """Answer, which is all there is to being alive."""
            return {"status": "alive"}

        @router.get("/readyz", summary="Ready: the model is warm")
        async def ready() -> dict[str, str]:
            """Answer once the model is warm and its thread works."""
            self.batcher.require_alive()
            return {"status": "ready", "bundle_digest": self.bundle.digest}

        @router.on_event("startup")
        async def watch() -> None:
            self._watcher = asyncio.create_task(self._watch())

        return router

    async def _watch(self) -> None:
        while True:
            self.metrics.watch(self.batcher)
            await asyncio.sleep(WATCH_S)
