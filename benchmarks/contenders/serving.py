"""Who is measured as a server: each is one command that listens on a port with the same bundle."""

from __future__ import annotations

import secrets
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

OURS: Final = (sys.executable, "-m", "serve")
TOKEN: Final = secrets.token_urlsafe(24)
"""Of this run; the rivals ask for none and ignore it."""

EXACT: Final = 1e-3
"""Most that our probabilities may differ from the model's own, which was fed the same pixels in
other batches."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a server runs.

    Attributes:
        port: where it listens, on loopback.
        bundle: folder of the model bundle.
        root: an empty folder, for what it keeps.
    """

    port: int
    bundle: str
    root: Path


@dataclass(frozen=True, kw_only=True)
class ServerContender:
    """One way to serve.

    Attributes:
        name: as the table and ``--only`` call it.
        what: one line for the table's reader.
        command: the process to start.
        path: where images are sent.
        health: path that answers 200 once it is ready; ``None`` where it says ``listening on``.
        variables: of its environment, beside those that everybody has.
        tolerance: most that a probability may differ from the model's own; ``None`` for those who
            decode otherwise.
    """

    name: str
    what: str
    command: Callable[[Place], list[str]]
    path: str
    health: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    tolerance: float | None = None


def ours(*flags: str) -> ServerContender:
    """Return our endpoint, started with more flags."""

    def command(place: Place) -> list[str]:
        return [
            *(*OURS, "--port", str(place.port), "--bundle", place.bundle),
            *("--root", str(place.root), *flags),
        ]

    return ServerContender(
        name="ours",
        what="python -m serve",
        command=command,
        path="/v1/classify",
        variables={"BLOODCELLS_TOKENS": f"bench classify,archives {TOKEN}"},
        tolerance=EXACT,
    )


def _script(module: str, *flags: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        return [
            *(sys.executable, "-m", f"benchmarks.contenders.{module}"),
            *("--port", str(place.port), "--bundle", place.bundle, *flags),
        ]

    return command


SERVERS: Final[tuple[ServerContender, ...]] = (
    ours(),
    ServerContender(
        name="ray_recipe",
        what="Ray Serve as its documentation has it, a replica a core",
        command=_script("serve_ray"),
        path="/",
    ),
    ServerContender(
        name="ray_recipe_tuned",
        what="the same, 64 open requests a replica, high-throughput mode (HAProxy)",
        command=_script("serve_ray", "--tuned"),
        path="/",
        variables={"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
    ),
    ServerContender(
        name="litserve",
        what="LitServe as its documentation has it, a worker a core",
        command=_script("serve_litserve"),
        path="/predict",
        health="/health",
    ),
    ServerContender(
        name="litserve_fast_queue",
        what="the same with fast_queue (ZeroMQ)",
        command=_script("serve_litserve", "--fast-queue"),
        path="/predict",
        health="/health",
    ),
)
LIMIT: Final = "limit"


def chosen(names: str | None) -> list[str]:
    """Return the names in a comma-separated list, in the table's order; all by default.

    Raises:
        ValueError: a name is not known.
    """
    known = [LIMIT, *(server.name for server in SERVERS)]
    if names is None:
        return known
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := sorted(set(wanted) - set(known)):
        raise ValueError(
            f"--only {','.join(unknown)}: no such server; there are {', '.join(known)}"
        )
    return [name for name in known if name in wanted]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
