"""The Slurm scripts: read by shells, and run, with real Ray, in a world of their own.

Slurm's two commands are played by others: ``srun`` runs what it is given, here, once; ``scontrol``
notes what it was asked. ``ray symmetric-run`` refuses machines on which Ray runs already, and ends
every Ray that it finds; so processes and network are in namespaces of their own.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from bloodcells.synthetic import BALANCED, draw_slide, write_archive
from tests.cluster_files import CLUSTER, ROOT, linter, require_understood

SCRIPTS = sorted((CLUSTER / "slurm").iterdir())
BATCHES = [path for path in SCRIPTS if path.suffix == ".sbatch"]
NUM_IMAGES = 300
PATIENCE_S = 240
OWN_WORLD = [
    *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--net"),
    *(() if os.geteuid() == 0 else ("--map-root-user",)),
]

SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >> "$SCONTROL_CALLS"
"""


def can_make_worlds() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return subprocess.run([*OWN_WORLD, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_bash_reads_it(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    shellcheck = linter("shellcheck")
    said = subprocess.run([shellcheck, str(script)], capture_output=True, text=True, check=False)
    assert said.stdout == ""


@pytest.mark.parametrize("script", BATCHES, ids=lambda p: p.name)
def test_slurm_is_told_to_warn_and_to_run_it_again(script: Path) -> None:
    told = re.findall(r"^#SBATCH --(\S+)$", script.read_text(), re.M)
    settings = dict(line.partition("=")[::2] for line in told)
    assert settings["ntasks-per-node"] == "1"  # one Ray a node
    assert {"requeue", "exclusive"} <= settings.keys()
    assert settings["open-mode"] == "append"  # the log of what was before stays
    assert re.fullmatch(r"B:USR1@\d+", settings["signal"])
    assert "trap 'stop yes' USR1" in (CLUSTER / "slurm" / "run.sh").read_text()


@pytest.mark.parametrize("script", BATCHES, ids=lambda p: p.name)
def test_its_own_examples_are_understood(script: Path) -> None:
    text = script.read_text()
    [job] = re.findall(r'run\.sh" (python -m jobs\.\w+) "\$@"$', text, re.M)
    examples = re.findall(rf"^#\s+sbatch .*?cluster/slurm/{script.name} (.*)$", text, re.M)
    examples += re.findall(
        rf"^sbatch .*?cluster/slurm/{script.name} (.*)$", (CLUSTER / "README.md").read_text(), re.M
    )
    assert len(examples) == 3
    for flags in examples:
        require_understood(f"{job} {flags}")


@dataclass(frozen=True, kw_only=True)
class Site:
    """A cluster of one node.

    Attributes:
        env: what a batch job has in its environment.
        calls: what ``scontrol`` was asked.
        job: the job's number.
    """

    env: dict[str, str]
    calls: Path
    job: str

    def submit(self, script: Path, *flags: str) -> subprocess.Popen[str]:
        """Start a batch script as Slurm would; two nodes never see each other's processes."""
        command = shlex.join(["bash", str(script), *flags])
        return subprocess.Popen(
            [*OWN_WORLD, "bash", "-c", f"ip link set lo up && exec {command}"],
            env=os.environ | self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def asked(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def leftovers(self) -> list[Path]:
        return [*ROOT.glob(f".slurm-{self.job}.*"), *Path("/tmp").glob(f"bloodcells-{self.job}*")]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    if not can_make_worlds():
        pytest.skip("this account may make no namespaces (unshare, ip)")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    job = str(os.getpid())
    calls = tmp_path / "calls"
    path = f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    yield Site(
        env={
            "PATH": path,
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": job,
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_CPUS_PER_TASK": "2",
            "HEAD_IP": "127.0.0.1",
            "SCONTROL_CALLS": str(calls),
        },
        calls=calls,
        job=job,
    )


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides") / "slides"
    write_archive(folder, draw_slide(BALANCED, NUM_IMAGES, seed=3), "folder")
    return folder


def parts(run: Path) -> list[Path]:
    return sorted((run / "scores").glob("*.parquet"))


def wait_for_parts(run: Path, job: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not parts(run):
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def batch_shell(job: subprocess.Popen[str]) -> psutil.Process:
    """Return the process that Slurm would signal (``--signal=B:…``): the script's own."""
    return psutil.Process(job.pid).children()[0]


def status(run: Path) -> str:
    return str(json.loads((run / "run.json").read_text())["status"])


@pytest.mark.timeout(900)
def test_a_job_whose_time_is_up_goes_on_when_it_is_run_again(
    site: Site, slides: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    script = CLUSTER / "slurm" / "score.sbatch"
    flags = ("--store", str(slides), "--out", str(run), "--shard-size", "1")

    job = site.submit(script, *flags)
    wait_for_parts(run, job)
    batch_shell(job).send_signal(signal.SIGUSR1)
    output = job.communicate(timeout=PATIENCE_S)[0]
    assert job.returncode == 130, output
    assert "interrupted: the same command goes on" in output
    assert site.asked() == [f"requeue {site.job}"]
    assert status(run) != "complete"
    assert site.leftovers() == []
    done = {part.name: part.stat().st_mtime_ns for part in parts(run)}
    assert 0 < len(done) < NUM_IMAGES

    job = site.submit(script, *flags)
    output = job.communicate(timeout=PATIENCE_S)[0]
    assert job.returncode == 0, output
    assert status(run) == "complete"
    assert len(site.asked()) == 1  # nothing to queue again
    assert site.leftovers() == []
    rows = [uri for part in parts(run) for uri in pq.read_table(part)["image_uri"].to_pylist()]
    assert len(rows) == len(set(rows)) == NUM_IMAGES
    assert all(
        part.stat().st_mtime_ns == done.get(part.name, part.stat().st_mtime_ns)
        for part in parts(run)
    )


@pytest.mark.timeout(900)
def test_a_job_that_was_cancelled_is_not_queued_again(
    site: Site, slides: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    script = CLUSTER / "slurm" / "score.sbatch"
    job = site.submit(script, "--store", str(slides), "--out", str(run), "--shard-size", "1")
    wait_for_parts(run, job)
    batch_shell(job).terminate()
    output = job.communicate(timeout=PATIENCE_S)[0]
    assert job.returncode == 130, output
    assert site.asked() == []
    assert site.leftovers() == []
    assert not (run / "lease.json").exists()  # free for whoever goes on
