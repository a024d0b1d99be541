"""One run at a time works in a folder, and a dead one does not keep it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bloodcells.errors import RunLockedError
from bloodcells.lease import EXPIRY_S, Lease

HOLD = """
import sys, time
from bloodcells.errors import RunLockedError
from bloodcells.lease import Lease
try:
    with Lease(sys.argv[1]):
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
except RunLockedError:
    print("refused", flush=True)
"""


def hold(run: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(run), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=30)


def test_the_second_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    with (
        Lease(str(tmp_path)),
        pytest.raises(RunLockedError, match=str(os.getpid())),
        Lease(str(tmp_path)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_is_succeeded_at_once(tmp_path: Path) -> None:
    holder = hold(tmp_path, 60)
    assert first_line(holder) == "held"
    holder.send_signal(signal.SIGKILL)
    end(holder)
    with Lease(str(tmp_path)):
        assert json.loads((tmp_path / "lease.json").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_of_many_successors_one_wins(tmp_path: Path) -> None:
    holder = hold(tmp_path, 60)
    assert first_line(holder) == "held"
    holder.kill()
    end(holder)
    heirs = [hold(tmp_path, 3) for _ in range(6)]
    answers = sorted(first_line(heir) for heir in heirs)
    for heir in heirs:
        end(heir)
    assert answers == ["held"] + ["refused"] * 5


def test_a_damaged_lease_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bloodcells.lease.HEARTBEAT_S", 0.3)
    (tmp_path / "lease.json").write_text("{")
    with pytest.raises(RunLockedError, match=r"lease\.json is damaged"), Lease(str(tmp_path)):
        pass


def test_who_lost_the_lease_finds_out_when_it_asks(tmp_path: Path) -> None:
    with Lease(str(tmp_path)) as lease:
        lease.confirm()
        (tmp_path / "lease.json").write_text(json.dumps({"token": "other"}))
        lease.check()  # no heartbeat has come upon it yet
        with pytest.raises(RunLockedError, match="belongs to another run"):
            lease.confirm()


def test_a_lease_from_another_machine_is_free_once_it_expired(tmp_path: Path) -> None:
    foreign = {"token": "t", "host": "elsewhere", "pid": 1, "started": "1", "machine": "m"}
    lease = tmp_path / "lease.json"
    lease.write_text(json.dumps({**foreign, "heartbeat": time.time()}))
    with pytest.raises(RunLockedError, match="elsewhere"), Lease(str(tmp_path)):
        pass
    lease.write_text(json.dumps({**foreign, "heartbeat": time.time() - EXPIRY_S - 1}))
    with Lease(str(tmp_path)):
        pass


def test_who_lost_the_lease_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bloodcells.lease.HEARTBEAT_S", 0.05)
    with Lease(str(tmp_path)) as lease:
        lease.check()
        (tmp_path / "lease.json").write_text(json.dumps({"token": "other"}))
        deadline = time.monotonic() + 5
        with pytest.raises(RunLockedError, match="belongs to another run"):
            while time.monotonic() < deadline:
                lease.check()
                time.sleep(0.02)
    assert (tmp_path / "lease.json").exists()
