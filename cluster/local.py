"""Several real Ray nodes on this machine, for trying out what runs on a cluster.

    python -m cluster.local --nodes 2 -- python -m cluster.submit --id try -- python -m jobs.…

starts a head that computes nothing and workers beside it, each a ``ray start`` of its own, on
loopback and behind a token; runs the command with ``RAY_ADDRESS`` and the token in its environment;
and takes the nodes down. The exit code is the command's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from bloodcells.errors import ClusterError
from bloodcells.pipeline.reaper import start_reaper
from jobs.flags import run_job

HOST: Final = "127.0.0.1"
NETWORK: Final = "127.0.0."
"""Every node has a loopback address of its own, from ``127.0.0.2`` on: Ray turns ``127.0.0.1`` into
the machine's outer address."""

START_S: Final = 120.0
END_S: Final = 20.0
OBJECT_STORE_BYTES: Final = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Node:
    """One ``ray start --block`` and all that it started.

    Attributes:
        process: the command.
        name: what Ray calls the node.
    """

    process: subprocess.Popen[bytes]
    name: str

    def kill(self) -> None:
        """End the node at once, with SIGKILL, as a machine that loses power."""
        _kill(_family(self.process.pid))
        self.process.wait()

    def stop(self) -> None:
        """Take the node down in good order, and what is left of it after a while by force."""
        family = _family(self.process.pid)
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=END_S)
        _, alive = psutil.wait_procs(family, timeout=END_S)
        _kill(alive)
        self.process.wait()


@dataclass(kw_only=True)
class LocalCluster:
    """A head and workers on this machine.

    Attributes:
        folder: where Ray keeps its session and the nodes' output; a short path, for sockets.
        port: the head's port.
        dashboard_port: where jobs are submitted.
        token: what lets a client in.
        extra_env: further variables of every node.
    """

    folder: Path
    port: int = field(default_factory=lambda: free_port())
    dashboard_port: int = field(default_factory=lambda: free_port())
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    extra_env: dict[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Return the address at which drivers join."""
        return f"{NETWORK}2:{self.port}"

    @property
    def dashboard(self) -> str:
        """Return the address at which jobs are submitted."""
        return f"http://{HOST}:{self.dashboard_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Return what a process needs in its environment to be let in."""
        return {
            **self.extra_env,
            # Jobs run ``python``: the one that runs this.
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def start_head(self, *, num_cpus: int = 0) -> Node:
        """Start the head, with its dashboard on loopback; all nodes end when this process does.

        Raises:
            ClusterError: it does not start; the message ends as its output does.
        """
        flags = [
            *("--head", "--port", str(self.port), "--num-cpus", str(num_cpus)),
            *("--dashboard-host", HOST, "--dashboard-port", str(self.dashboard_port)),
            *("--ray-client-server-port", str(free_port()), "--temp-dir", str(self.folder)),
            "--include-dashboard=true",
        ]
        start_reaper()
        return self._start("head", flags)

    def add_node(self, name: str, *, num_cpus: int = 1, num_gpus: int = 0) -> Node:
        """Start a worker node and wait until it has joined.

        Args:
            name: what Ray calls it.
            num_cpus: cores that it claims to have.
            num_gpus: GPUs that it claims to have; nothing checks.

        Raises:
            ClusterError: it does not start; the message ends as its output does.
        """
        resources = ("--num-cpus", str(num_cpus), "--num-gpus", str(num_gpus))
        return self._start(name, ["--address", self.address, *resources])

    def alive(self) -> list[str]:
        """Return the names of the nodes that the head takes for alive."""
        request = urllib.request.Request(  # noqa: S310  # http, as `dashboard` has it
            f"{self.dashboard}/nodes?view=summary",
            headers={"Authorization": f"Bearer {self.token}"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            nodes = json.load(answer)["data"]["summary"]
        return [n["raylet"]["nodeName"] for n in nodes if n["raylet"]["state"] == "ALIVE"]

    def stop(self) -> None:
        """Take all nodes down, the head last."""
        for node in reversed(self.nodes):
            node.stop()
        self.nodes.clear()

    def _start(self, name: str, flags: Sequence[str]) -> Node:
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *flags),
            *("--node-ip-address", f"{NETWORK}{len(self.nodes) + 2}", "--node-name", name),
            *("--object-store-memory", str(OBJECT_STORE_BYTES)),
            *("--min-worker-port", "0", "--max-worker-port", "0"),
            *("--dashboard-agent-listen-port", str(free_port())),
            *("--metrics-export-port", str(free_port())),
        ]
        log = self.folder / f"{name}-{len(self.nodes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=os.environ | self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        node = Node(process=process, name=name)
        self.nodes.append(node)
        self._wait_for(node, log)
        return node

    def _wait_for(self, node: Node, log: Path) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and node.process.poll() is None:
            with contextlib.suppress(OSError, ValueError, KeyError):  # not up yet
                if node.name in self.alive():
                    return
            time.sleep(0.5)
        tail = log.read_text(errors="replace").strip()[-500:]
        raise ClusterError(
            f"node {node.name} did not start: {tail}; see that this machine has free memory and "
            f"ports, and {log}"
        )


@contextlib.contextmanager
def local_cluster(num_nodes: int, *, num_cpus: int = 1) -> Iterator[LocalCluster]:
    """Run a head and ``num_nodes`` workers of ``num_cpus`` cores for the length of a ``with``."""
    with tempfile.TemporaryDirectory(prefix="bc-", ignore_cleanup_errors=True) as folder:
        cluster = LocalCluster(folder=Path(folder))
        try:
            cluster.start_head()
            for number in range(num_nodes):
                cluster.add_node(f"worker-{number + 1}", num_cpus=num_cpus)
            yield cluster
        finally:
            cluster.stop()


def free_port() -> int:
    """Return a port that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command on a cluster of this machine; returns the command's exit code."""
    flags = _flags(argv)
    code = 0

    def work() -> None:
        nonlocal code
        with local_cluster(flags.nodes, num_cpus=flags.cpus) as cluster:
            where = {"RAY_ADDRESS": cluster.address, "RAY_API_SERVER_ADDRESS": cluster.dashboard}
            print(f"a head and {flags.nodes} workers; {cluster.dashboard}", file=sys.stderr)
            code = subprocess.run(
                flags.command, env=os.environ | cluster.environment | where, check=False
            ).returncode

    return run_job(work) or code


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(list(processes), timeout=END_S)


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.local",
        usage="%(prog)s [--nodes N] [--cpus N] -- COMMAND",
        description="Run a command against several Ray nodes on this machine.",
    )
    parser.add_argument("--nodes", type=int, default=2, help="worker nodes (default: 2)")
    parser.add_argument("--cpus", type=int, default=1, help="cores a worker claims (default: 1)")
    parser.add_argument("command", nargs="+", help="what to run, after --")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
