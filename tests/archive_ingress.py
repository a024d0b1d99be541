"""The endpoint less its single cells, for tests of archive runs: replicas import it by name."""

from __future__ import annotations

from typing import Any

from ray import serve
from starlette.types import ASGIApp

from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from serve.api import create_api
from serve.archive_desk import ArchiveDesk
from serve.archive_poke import poking
from serve.archive_routes import archive_router
from serve.doors import Doors, read_tokens
from serve.settings import ServeSettings


@serve.ingress()
class Ingress:
    """The endpoint, less its single cells."""

    def __init__(self, settings: dict[str, Any], keeper: Any) -> None:
        self.settings = ServeSettings(**settings)
        self.doors = Doors(read_tokens(self.settings.tokens_file))
        self.bundle = ModelBundle.load(shipped_bundle_uri())
        self.keeper = keeper

    def __serve_build_asgi_app__(self) -> ASGIApp:
        desk = ArchiveDesk(self.settings, self.bundle, poking(self.keeper))
        return create_api([archive_router(desk, self.doors)], self.doors)
