"""Fixtures that several test modules share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray
import torch

from bloodcells.pipeline.cluster import start_ray
from tests.s3 import S3Server, ordered_s3_server, s3_server

torch.set_num_threads(1)  # threads of two test processes would wait for each other's cores


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server process; its endpoint and credentials are in the environment."""
    folder = tmp_path_factory.mktemp("s3") / "buckets"
    with s3_server(folder) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.env.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def ordered_s3_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A second S3 server process, for what the first does not do as S3 does."""
    with ordered_s3_server(tmp_path_factory.mktemp("ordered") / "s3") as server:
        yield server


@pytest.fixture
def ordered_s3(ordered_s3_process: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server whose listings begin after any key; it is in the environment of one test."""
    for name, value in ordered_s3_process.env.items():
        monkeypatch.setenv(name, value)
    return ordered_s3_process


@pytest.fixture(scope="session")
def ray_cluster(s3: S3Server) -> Iterator[None]:
    """One Ray for all tests of a session; its workers find the S3 server in their environment."""
    start_ray(num_cpus=2)
    yield
    ray.shutdown()
