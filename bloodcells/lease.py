"""The lease of a run folder: one run at a time works there.

A lease is ``RUN/lease.json``: an owner, a heartbeat, an expiry. Results do not depend on it, since
publication is idempotent; it keeps two drivers from doing the same work twice and from writing
``run.json`` against each other. Knows nothing of shards or models.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from bloodcells import storage
from bloodcells.errors import NotFoundError, RunLockedError, StorageError

LEASE_NAME: Final = "lease.json"
CLAIM_PREFIX: Final = "lease-after-"
HEARTBEAT_S: Final = 10.0
EXPIRY_S: Final = 60.0
"""A lease without a heartbeat for this long is free. Six heartbeats: one slow put is no death."""


class Lease:
    """Holds a run folder's lease from ``with`` to the end of the block, and renews it meanwhile."""

    def __init__(self, run_uri: str) -> None:
        self.run_uri = run_uri
        self.uri = storage.join(run_uri, LEASE_NAME)
        self._me = {"token": uuid.uuid4().hex, **_this_process()}
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._patience_ends = time.monotonic() + HEARTBEAT_S
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        """Take the lease.

        Raises:
            RunLockedError: another run holds it.
        """
        self._acquire()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the lease back, unless it was lost."""
        self._stop.set()
        self._thread.join(EXPIRY_S)
        # A folder that is out of reach keeps its lease, which then expires.
        with contextlib.suppress(StorageError):
            if not self._lost.is_set() and self._is_mine():
                for entry in list(storage.listdir(self.run_uri)):
                    if entry.name.startswith(CLAIM_PREFIX):
                        storage.delete(entry.uri)
                storage.delete(self.uri)

    def check(self) -> None:
        """Make sure that the last heartbeat found the lease still held.

        Raises:
            RunLockedError: another run took it, because this one gave no heartbeat for too long.
        """
        if self._lost.is_set():
            raise RunLockedError(
                f"{self.uri} now belongs to another run; this one stops. "
                "What it published stays valid"
            )

    def confirm(self) -> None:
        """Make sure that the lease is held now; costs a request, so not for every shard.

        Raises:
            RunLockedError: another run took it.
        """
        if not self._is_mine():
            self._lost.set()
        self.check()

    def _acquire(self) -> None:
        while not storage.put_if_absent(self.uri, self._bytes()):
            holder = _read(self.uri)
            if holder is not None:
                self._succeed(holder)
                return
            self._wait_for_sense(self.uri)

    def _succeed(self, holder: dict[str, Any]) -> None:
        """Take over from a dead holder: whoever first creates the claim on its token, no other."""
        while _is_dead(holder):
            claim = self._claim_uri(holder)
            if storage.put_if_absent(claim, self._bytes()):
                storage.put(self.uri, self._bytes())
                return
            # Its successor may have died in turn, before it wrote the lease.
            successor = _read(claim)
            if successor is None:
                self._wait_for_sense(claim)
            else:
                holder = successor
        raise RunLockedError(self._held_by(holder))

    def _wait_for_sense(self, uri: str) -> None:
        """Wait a moment: a file without a holder may be one that is being written, or removed."""
        if time.monotonic() > self._patience_ends:
            raise RunLockedError(
                f"{uri} is damaged: it does not say who holds the folder. Make sure that no other "
                "run works there, delete that file and run the same command again"
            )
        time.sleep(0.1)

    def _claim_uri(self, holder: dict[str, Any]) -> str:
        return storage.join(self.run_uri, f"{CLAIM_PREFIX}{holder.get('token')}.json")

    def _held_by(self, holder: dict[str, Any]) -> str:
        age = time.time() - float(holder.get("heartbeat", 0))
        return (
            f"another run holds {self.uri} (process {holder.get('pid')} on {holder.get('host')}, "
            f"last heard of {age:.0f} s ago). Wait for it, or choose another --out; a lease "
            f"without a heartbeat is free after {EXPIRY_S:.0f} s"
        )

    def _renew(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            try:
                if not self._is_mine():
                    self._lost.set()
                    return
                storage.put(self.uri, self._bytes())
            except StorageError:
                # The next beat tries again; should it never succeed, publishing fails as well and
                # says so, and the lease expires for others as it should.
                continue

    def _is_mine(self) -> bool:
        holder = _read(self.uri)
        return holder is not None and holder.get("token") == self._me["token"]

    def _bytes(self) -> bytes:
        return json.dumps({**self._me, "heartbeat": time.time()}, indent=2).encode()


def _read(uri: str) -> dict[str, Any] | None:
    try:
        found = json.loads(storage.read(uri))
    except (NotFoundError, json.JSONDecodeError):
        return None
    return found if isinstance(found, dict) else None


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _start_time(os.getpid()),
        "machine": _machine(),
    }


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder's process is known to have ended, or its lease has expired."""
    if time.time() - float(holder.get("heartbeat", 0)) > EXPIRY_S:
        return True
    if holder.get("machine") != _machine() or holder.get("host") != socket.gethostname():
        return False
    return bool(_start_time(int(holder.get("pid", 0))) != holder.get("started"))


def _machine() -> str:
    """One boot of one machine (and one process namespace of it): where process ids mean something.

    Empty where the system does not tell; then only the expiry frees a lease.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return uuid.uuid4().hex


def _start_time(pid: int) -> str:
    """Start time of a running process in clock ticks since boot; empty if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    is_zombie = fields[0] in ("Z", "X")
    return "" if is_zombie else fields[19]
