"""Run a command to its end as a user would, watch its memory, leave nothing of it behind.

Or a server, for as long as it is needed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import psutil

RSS_EVERY_S: Final = 0.2
USS_EVERY_S: Final = 1.0
"""Unique memory is read seldom: the kernel walks page tables for it, on the contenders' cores."""

GRACE_S: Final = 15.0
"""Ray's own processes follow their driver within seconds; what lives on then is ended."""

ORPHANS_GRACE_S: Final = 3.0
"""A server's own processes have been told by then; LitServe's outlive it."""

TAIL_CHARACTERS: Final = 2000


class ContenderError(Exception):
    """A contender failed or ran out of time; the message has the end of its log."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A command that ended well.

    Attributes:
        seconds: wall time from start to exit.
        driver_rss_bytes: peak resident memory of the process that was started.
        workers_uss_bytes: peak of the sum, over its descendants, of memory that is theirs alone
            (unique set size), so that shared libraries and Ray's object store count nowhere twice.
        workers_rss_bytes: peak of the sum of their resident memory; shared pages count in each.
        num_workers: most descendants at once.
        num_left_over: descendants that had to be ended afterwards.
        sampling_share: CPU time of the sampling, as a share of ``seconds`` on one core.
    """

    seconds: float
    driver_rss_bytes: int
    workers_uss_bytes: int
    workers_rss_bytes: int
    num_workers: int
    num_left_over: int
    sampling_share: float


def run(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path, timeout_s: float
) -> Finished:
    """Run a command, output to ``log``, and end every process that it leaves.

    Raises:
        ContenderError: a non-zero exit code, or more than ``timeout_s`` seconds.
    """
    with log.open("wb") as output:
        start = time.perf_counter()
        process = _start(command, env, cwd, output)
        watch = _Watch(psutil.Process(process.pid))
        # Popen.wait with a timeout polls every 50 ms; this waits for the exit itself.
        alarm = threading.Timer(timeout_s, _interrupt_group, (process.pid,))
        alarm.start()
        watch.start()
        try:
            code = process.wait()
            seconds = time.perf_counter() - start
        finally:
            alarm.cancel()
            watch.stop()
            num_left_over = watch.end_survivors(grace_s=GRACE_S if process.returncode == 0 else 0)
            process.wait()
    if code != 0:
        why = f"was stopped after {timeout_s:g} s" if seconds >= timeout_s else f"exit code {code}"
        raise ContenderError(f"{' '.join(command)}: {why}\n{_tail(log)}")
    return Finished(
        seconds=seconds,
        driver_rss_bytes=watch.driver_rss,
        workers_uss_bytes=watch.workers_uss,
        workers_rss_bytes=watch.workers_rss,
        num_workers=watch.num_workers,
        num_left_over=num_left_over,
        sampling_share=watch.cpu_seconds / seconds,
    )


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server process that runs.

    Attributes:
        process: the process that was started.
        log: where its output goes.
        name: who it is, for messages.
    """

    process: subprocess.Popen[bytes]
    log: Path
    name: str

    def wait_until(self, is_ready: Callable[[], bool], *, timeout_s: float) -> float:
        """Wait until it is ready; returns the seconds.

        Raises:
            ContenderError: it ended, or was not ready in ``timeout_s`` seconds.
        """
        start = time.perf_counter()
        while not is_ready():
            self.require_alive()
            if time.perf_counter() - start > timeout_s:
                raise ContenderError(
                    f"{self.name}: not ready in {timeout_s:g} s\n{_tail(self.log)}"
                )
            time.sleep(0.1)
        return time.perf_counter() - start

    def require_alive(self) -> None:
        """Raise a ContenderError with the end of the log if the server has ended."""
        if (code := self.process.poll()) is not None:
            raise ContenderError(f"{self.name}: ended with exit code {code}\n{_tail(self.log)}")

    def rss_bytes(self) -> int:
        """Return the resident memory of it and its descendants; shared pages count in each."""
        total = 0
        root = psutil.Process(self.process.pid)
        for member in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += member.memory_info().rss
        return total


@contextlib.contextmanager
def serving(
    name: str, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path
) -> Iterator[Server]:
    """Start a server, output to ``log``; afterwards ask it to end, and end all that it leaves."""
    with log.open("wb") as output:
        process = _start(command, env, cwd, output)
        watch = _Watch(psutil.Process(process.pid))  # never started: it would sample memory
        try:
            yield Server(process=process, log=log, name=name)
        finally:
            watch.look_for_children()
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            watch.end_survivors(grace_s=ORPHANS_GRACE_S)
            process.wait()


def _start(
    command: Sequence[str], env: Mapping[str, str], cwd: Path, output: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own."""
    return subprocess.Popen(
        command,
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


class _Watch(threading.Thread):
    """Samples the memory of a process and its descendants, and remembers all it saw."""

    def __init__(self, root: psutil.Process) -> None:
        super().__init__(daemon=True)
        self.root = root
        self.seen: set[psutil.Process] = set()
        self.driver_rss = self.workers_uss = self.workers_rss = self.num_workers = 0
        self.cpu_seconds = 0.0
        self._stopping = threading.Event()

    def run(self) -> None:
        tree_at = 0.0
        while not self._stopping.wait(RSS_EVERY_S):
            now = time.monotonic()
            is_due = now - tree_at >= USS_EVERY_S
            if is_due:
                tree_at = now
                self.look_for_children()
            self._sample(with_uss=is_due)
            self.cpu_seconds = time.thread_time()

    def stop(self) -> None:
        """End sampling."""
        self._stopping.set()
        self.join()

    def look_for_children(self) -> None:
        """Remember every descendant there is now."""
        for parent in (self.root, *self.seen):
            try:
                self.seen.update(parent.children(recursive=parent == self.root))
            except psutil.Error:
                continue

    def end_survivors(self, *, grace_s: float) -> int:
        """Wait for descendants to end by themselves, then end them; returns how many."""
        deadline = time.monotonic() + grace_s
        self.look_for_children()
        while (alive := self._alive()) and time.monotonic() < deadline:
            time.sleep(0.1)
            self.look_for_children()
        for process in alive:
            try:
                process.kill()
            except psutil.Error:
                continue
        psutil.wait_procs([process for process in alive if process != self.root], timeout=5)
        return len(alive)

    def _alive(self) -> list[psutil.Process]:
        """Return who still runs; a zombie, which only waits to be reaped, does not."""
        alive = []
        for process in (*self.seen, self.root):
            try:
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
            except psutil.Error:
                continue
        return alive

    def _sample(self, *, with_uss: bool) -> None:
        rss = uss = count = 0
        for worker in self.seen:
            try:
                rss += worker.memory_info().rss
                uss += worker.memory_full_info().uss if with_uss else 0
                count += 1
            except psutil.Error:
                continue
        with contextlib.suppress(psutil.Error):
            self.driver_rss = max(self.driver_rss, self.root.memory_info().rss)
        self.workers_rss = max(self.workers_rss, rss)
        self.workers_uss = max(self.workers_uss, uss)
        self.num_workers = max(self.num_workers, count)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-TAIL_CHARACTERS:]


def _interrupt_group(pid: int) -> None:
    """End a command that takes too long; its descendants are ended by the watch."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
