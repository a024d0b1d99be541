"""The Slurm scripts: read by shells, and run, with real Ray, in a world of their own.

Slurm is played by others: ``srun`` runs what it is given here and, through a pipe, on the second
node; ``scontrol`` notes what it was asked. Nodes are namespaces of processes and network, with a
cable between them: ``ray symmetric-run`` refuses a machine on which Ray runs already, and ends
every Ray that it finds there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from bloodcells.synthetic import BALANCED, draw_slide, write_archive
from tests.cluster_files import CLUSTER, ROOT, linter, require_understood

SCRIPTS = sorted((CLUSTER / "slurm").iterdir())
BATCHES = [path for path in SCRIPTS if path.suffix == ".sbatch"]
NUM_IMAGES = 200
PATIENCE_S = 600  # a job starts in half a minute, but other tests may want the same cores
UNSHARE = ["unshare", *(() if os.geteuid() == 0 else ("--map-root-user",))]
OWN_PROCESSES = "unshare --pid --fork --kill-child --mount-proc"

WORLD = f"""set -e
ip link set lo up
mount -t tmpfs tmpfs /run
mkdir /run/netns
ip netns add other
ip link add here type veth peer name there netns other
ip addr add 10.99.0.1/24 dev here
ip link set here up
ip -n other link set lo up
ip -n other addr add 10.99.0.2/24 dev there
ip -n other link set there up
if [[ $SLURM_JOB_NUM_NODES == 2 ]]; then
  ip netns exec other {OWN_PROCESSES} bash "$PIPES/second" &
fi
exec {OWN_PROCESSES} bash "$@"
"""
SECOND = """
source "$PIPES/step"
"""
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
if [[ $SLURM_JOB_NUM_NODES == 2 ]]; then
  {
    export -p
    echo 'mkdir -p "$RAY_TMPDIR" && mount -t tmpfs tmpfs "$RAY_TMPDIR"'
    printf '%q ' "$@"
    printf '\\necho $? > "$PIPES/ended"\\n'
  } > "$PIPES/step"
fi
"$@"
code=$?
[[ $SLURM_JOB_NUM_NODES == 1 ]] || read -r _ < "$PIPES/ended"
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >> "$SCONTROL_CALLS"
"""


def can_make_worlds() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    tried = [*UNSHARE, "--net", "--mount", *OWN_PROCESSES.split(), "true"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


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
    """A cluster of two nodes.

    Attributes:
        env: what a batch job has in its environment.
        calls: what ``scontrol`` was asked.
        job: the job's number.
        jobs: what was submitted.
    """

    env: dict[str, str]
    calls: Path
    job: str
    jobs: list[subprocess.Popen[str]] = field(default_factory=list)

    def submit(self, script: Path, *flags: str, nodes: int) -> subprocess.Popen[str]:
        """Start a batch script as Slurm would."""
        job = subprocess.Popen(
            [*UNSHARE, "--net", "--mount", "bash", "-c", WORLD, "world", str(script), *flags],
            env=os.environ | self.env | {"SLURM_JOB_NUM_NODES": str(nodes)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.jobs.append(job)
        return job

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
    for pipe in ("step", "ended"):
        os.mkfifo(tmp_path / pipe)
    (tmp_path / "second").write_text(SECOND)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    job = str(os.getpid())
    calls = tmp_path / "calls"
    path = f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    site = Site(
        env={
            "PIPES": str(tmp_path),
            "PATH": path,
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": job,
            "SLURM_CPUS_PER_TASK": "1",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # a node without a head gives up
            "SCONTROL_CALLS": str(calls),
        },
        calls=calls,
        job=job,
    )
    yield site
    for started in site.jobs:
        with contextlib.suppress(ProcessLookupError):  # where all went well
            os.killpg(started.pid, signal.SIGKILL)
    for path in site.leftovers():
        shutil.rmtree(path, ignore_errors=True)


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
    family = psutil.Process(job.pid).children()
    return next(member for member in family if "run.sh" in " ".join(member.cmdline()))


def status(run: Path) -> str:
    return str(json.loads((run / "run.json").read_text())["status"])


@pytest.mark.timeout(1800)
def test_a_job_whose_time_is_up_goes_on_when_it_is_run_again(
    site: Site, slides: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    script = CLUSTER / "slurm" / "score.sbatch"
    flags = ("--store", str(slides), "--out", str(run), "--shard-size", "1", "--site", "none")

    job = site.submit(script, *flags, nodes=2)
    wait_for_parts(run, job)
    batch_shell(job).send_signal(signal.SIGUSR1)
    output = job.communicate(timeout=PATIENCE_S)[0]
    assert job.returncode == 130, output
    assert "interrupted: the same command goes on" in output
    assert "1 to 2 scorers" in output  # one a node, for each has one core
    assert site.asked() == [f"requeue {site.job}"]
    assert status(run) != "complete"
    assert site.leftovers() == []
    done = {part.name: part.stat().st_mtime_ns for part in parts(run)}
    assert 0 < len(done) < NUM_IMAGES

    job = site.submit(script, *flags, nodes=2)
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


@pytest.mark.timeout(1800)
def test_a_job_that_was_cancelled_is_not_queued_again(
    site: Site, slides: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    script = CLUSTER / "slurm" / "score.sbatch"
    flags = ("--store", str(slides), "--out", str(run), "--shard-size", "1", "--site", "none")
    job = site.submit(script, *flags, nodes=1)
    wait_for_parts(run, job)
    batch_shell(job).terminate()
    output = job.communicate(timeout=PATIENCE_S)[0]
    assert job.returncode == 130, output
    assert site.asked() == []
    assert site.leftovers() == []
    assert not (run / "lease.json").exists()  # free for whoever goes on
