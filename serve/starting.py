"""Ray and Ray Serve, started on this machine alone: loopback, HAProxy in front, nothing left over.

On a cluster none of this is used: there ``serve deploy`` finds Ray and its environment ready.
"""

from __future__ import annotations

import logging
import os
import random
import socket
from pathlib import Path
from typing import Final

import ray
from ray import serve

from bloodcells.pipeline.reaper import MARK, end_marked, start_reaper
from serve.app import build
from serve.settings import ServeSettings

ENVIRONMENT_FILE: Final = Path(__file__).parent / "ray.env"

REPLICA_PORTS: Final = range(20_000, 30_000, 100)
"""Where the hundred ports of an endpoint's replicas may begin; systems give out higher ones."""

APPLICATION: Final = "bloodcells"


def start(settings: ServeSettings, *, port: int, num_cpus: int) -> None:
    """Start Ray here and the application on it, and wait until it answers.

    Args:
        settings: what the operator decided.
        port: HTTP port, on loopback.
        num_cpus: cores that Ray may book.
    """
    start_reaper()
    for name, value in (environment() | own_ports()).items():
        os.environ.setdefault(name, value)
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        object_store_memory=2**28,
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": port},
        logging_config={"log_level": "WARNING"},
    )
    serve.run(build(settings), name=APPLICATION, route_prefix="/")


def environment() -> dict[str, str]:
    """Return what Ray's processes should have in their environment, from ``ray.env``."""
    lines = ENVIRONMENT_FILE.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def own_ports() -> dict[str, str]:
    """Return, as environment variables, ports that no other endpoint on this machine uses.

    Ray Serve would give every endpoint the same: HAProxy's two, and those of the replicas, so that
    a proxy could send a request on to another endpoint's replica.
    """
    first = random.choice(REPLICA_PORTS)
    return {
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + REPLICA_PORTS.step - 1),
    }


def stop() -> None:
    """Take the application down, then Ray, then what they leave."""
    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()
    end_marked(os.environ[MARK])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
