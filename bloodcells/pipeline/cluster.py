"""The Ray cluster that a job runs on: connect or start, and what it has."""

from __future__ import annotations

import logging
import os
import signal

import ray
from ray.data import DataContext

from bloodcells.errors import ClusterError, ConfigurationError
from bloodcells.pipeline.reaper import start_reaper


def start_ray(num_cpus: int | None = None) -> None:
    """Connect to the cluster at ``RAY_ADDRESS``, or start Ray on this machine.

    Raises:
        ConfigurationError: no cluster at ``RAY_ADDRESS`` lets this job in.
        ClusterError: Ray does not start here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        on_sigterm = signal.getsignal(signal.SIGTERM)
        address = os.environ.get("RAY_ADDRESS")
        if address:
            _connect(address)
        else:
            start_reaper()
            _start(num_cpus)
        if callable(on_sigterm):  # Ray puts its own there, which ends a job without a word
            signal.signal(signal.SIGTERM, on_sigterm)
    quieten_ray_data()


def quieten_ray_data(level: int = logging.WARNING) -> None:
    """Keep Ray Data from telling of each of its steps in this process; a job does it itself.

    Args:
        level: what it may still say. A training worker lets it say errors only: its tasks that ask
            for no CPU need none to be free, and Ray Data warns that they would hang.
    """
    logging.getLogger("ray.data").setLevel(level)
    # It warns that a job will hang where no core is free at this moment: one soon is.
    logging.getLogger("ray.data.dataset").setLevel(logging.ERROR)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def resources_in_reach() -> dict[str, float]:
    """Return what the nodes have, or what the autoscaler may start where that is more."""
    here: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    # Ray's own Train asks this of the same place; there is no public way (Ray 2.60).
    most = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return {name: max(here.get(name, 0), most.get(name, 0)) for name in {*here, *most}}


def _start(num_cpus: int | None) -> None:
    try:
        ray.init(
            address="local",  # and no other cluster that happens to be on this machine
            num_cpus=num_cpus,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=True,
            object_store_memory=_object_store_bytes(),
        )
    except Exception as error:  # a slow start is a bare Exception in Ray 2.60
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise ClusterError(
            f"Ray did not start on this machine ({type(error).__name__}: {reason}); see that it "
            "has free memory, processors and room in /tmp, and run the same command again"
        ) from error


def _connect(address: str) -> None:
    try:
        ray.init(logging_level=logging.ERROR, runtime_env={"env_vars": _storage_variables()})
    except (ConnectionError, ValueError, RuntimeError) as error:  # the last: another Ray or Python
        raise ConfigurationError(
            f"RAY_ADDRESS={address}: no Ray cluster lets this job in "
            f"({' '.join(str(error).split())}); start one there with the same Ray and Python, give "
            "its token (RAY_AUTH_MODE=token and RAY_AUTH_TOKEN), or unset RAY_ADDRESS to run on "
            "this machine"
        ) from error


def is_shared() -> bool:
    """Return whether this job runs on a cluster that others may use as well."""
    return bool(os.environ.get("RAY_ADDRESS"))


def cluster_device() -> str:
    """Return ``cuda`` if any node that the cluster has or may start has a GPU, else ``cpu``."""
    return "cuda" if resources_in_reach().get("GPU", 0) >= 1 else "cpu"


def cluster_scorers() -> int:
    """Return how many scorers the cluster has room for: one a GPU, else one a CPU core.

    Counted is what an autoscaler may start as well: it starts nodes for those who ask for them.
    """
    resources = resources_in_reach()
    return max(1, int(resources.get("GPU", 0)) or int(resources.get("CPU", 1)))


def _storage_variables() -> dict[str, str]:
    """Return where S3 is, for workers of a cluster started elsewhere; never a secret."""
    names = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
    return {name: os.environ[name] for name in names if name in os.environ}


def _object_store_bytes() -> int:
    """An eighth of this machine's memory, 256 MiB to 4 GiB: shards in flight are all it holds."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(min(max(total // 8, 2**28), 2**32))
