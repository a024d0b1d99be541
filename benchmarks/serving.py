"""A server started for measuring, and the generator that is pointed at it."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import machine
from benchmarks.contenders.serving import TOKEN, Place, ServerContender, free_port
from benchmarks.processes import ContenderError, Server, serving

ROOT: Final = Path(__file__).parents[1]
START_S: Final = 180.0


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all measurements of a run have in common.

    Attributes:
        work: a folder for temporary files.
        images: folder of JPEG files, sent in turn.
        expected: ``.npy`` file, ``float32 (N, 8)``: the model's own probabilities of them.
        bundle: folder of the model bundle.
        seconds: length of a measurement.
        warm_up_s: seconds of load before it.
        timeout_s: longest that a process may take beyond that.
    """

    work: Path
    images: Path
    expected: Path
    bundle: str
    seconds: float
    warm_up_s: float
    timeout_s: float

    @staticmethod
    def say(text: str) -> None:
        """Tell the person who waits."""
        print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server that answers.

    Attributes:
        bench: what all measurements have in common.
        contender: who it is.
        server: its process.
        place: where it runs.
        start_s: seconds until it was ready.
    """

    bench: Bench
    contender: ServerContender
    server: Server
    place: Place
    start_s: float

    @property
    def url(self) -> str:
        """Its address, without a path."""
        return f"http://127.0.0.1:{self.place.port}"

    def load(self, **plan: Any) -> dict[str, Any]:
        """Load it once.

        Args:
            plan: of :class:`benchmarks.load.Plan`, what differs from the bench's.

        Returns:
            :class:`benchmarks.answers.Load` as JSON has it, and what the generator says of itself.

        Raises:
            ContenderError: the server ended, or the generator failed.
        """
        with self.loading(**plan) as loading:
            pass
        return loading.result()

    @contextlib.contextmanager
    def loading(self, **plan: Any) -> Iterator[Loading]:
        """Load it while something else is done; waits for the generator in the end."""
        out = Path(tempfile.mkdtemp(dir=self.bench.work)) / "load.json"
        seconds = plan.pop("seconds", self.bench.seconds)
        command = [
            *(sys.executable, "-m", "benchmarks.load", "--url", self.url + self.contender.path),
            *("--images", str(self.bench.images), "--expected", str(self.bench.expected)),
            *("--seconds", str(seconds), "--warm-up", str(self.bench.warm_up_s)),
            *("--bearer", TOKEN, "--out", str(out)),
        ]
        if self.contender.tolerance is not None:
            command += ["--tolerance", str(self.contender.tolerance)]
        if plan.pop("is_patient", False):
            command.append("--patient")
        for name, value in plan.items():
            command += [f"--{name}", str(value)]
        with out.with_suffix(".log").open("wb") as log:
            generator = subprocess.Popen(
                command, cwd=ROOT, env=machine.environment(), stdout=log, stderr=log
            )
            try:
                yield (loading := Loading(target=self, out=out))
                code = generator.wait(seconds + self.bench.timeout_s)
            except subprocess.TimeoutExpired:
                raise ContenderError(f"{self.contender.name}: the load did not end") from None
            finally:
                generator.kill()
                generator.wait()
        self.server.require_alive()
        if code != 0:
            raise ContenderError(f"the generator failed: {out.with_suffix('.log').read_text()}")
        loading.finish(self.server.rss_bytes())


class Loading:
    """A load under way, and its result afterwards."""

    def __init__(self, *, target: Target, out: Path) -> None:
        self.target = target
        self.out = out
        self.server_rss_bytes = 0

    def finish(self, server_rss_bytes: int) -> None:
        """Note the server's memory right after the load."""
        self.server_rss_bytes = server_rss_bytes

    def result(self) -> dict[str, Any]:
        """Return the load as JSON has it."""
        found: dict[str, Any] = json.loads(self.out.read_text())
        return found | {
            "start_s": self.target.start_s,
            "server_rss_mib": round(self.server_rss_bytes / 2**20),
        }


@contextlib.contextmanager
def started(bench: Bench, contender: ServerContender) -> Iterator[Target]:
    """Start a server and wait until it is ready; it is ended afterwards.

    Raises:
        ContenderError: it did not start.
    """
    root = Path(tempfile.mkdtemp(prefix=f"{contender.name}-", dir=bench.work))
    place = Place(port=free_port(), bundle=bench.bundle, root=root)
    log = bench.work / f"{contender.name}.log"
    with serving(
        contender.name,
        contender.command(place),
        env=machine.environment() | dict(contender.variables),
        cwd=ROOT,
        log=log,
    ) as server:
        start_s = server.wait_until(
            lambda: _is_ready(contender, place.port, log), timeout_s=START_S
        )
        yield Target(bench=bench, contender=contender, server=server, place=place, start_s=start_s)


def _is_ready(contender: ServerContender, port: int, log: Path) -> bool:
    if contender.health is None:
        return "listening on" in log.read_text(errors="replace")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", contender.health)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
