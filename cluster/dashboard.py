"""A cluster's dashboard, where jobs are submitted, followed and stopped: how a process gets in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from bloodcells.errors import ClusterError


def connect(address: str | None) -> JobSubmissionClient:
    """Return a client of the dashboard at ``http://HOST:8265``, or where ``RAY_ADDRESS`` says.

    Raises:
        ClusterError: no dashboard there lets this process in.
    """
    with asking(address):
        return JobSubmissionClient(address)


@contextlib.contextmanager
def asking(address: str | None) -> Iterator[None]:
    """Turn what Ray says of a dashboard that is not there, or lets nobody in, into a sentence."""
    try:
        yield
    except (ConnectionError, RuntimeError, ValueError, AuthenticationError) as error:
        where = address or os.environ.get("RAY_ADDRESS", "this machine")
        raise ClusterError(
            f"--address {where}: no dashboard lets this process in "
            f"({' '.join(str(error).split())[:300]}); give http://HOST:8265, and the cluster's "
            "token (RAY_AUTH_MODE=token and RAY_AUTH_TOKEN)"
        ) from error
