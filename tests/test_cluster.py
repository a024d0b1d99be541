"""Where scorers go: one a GPU where the cluster has any, else one a core."""

from __future__ import annotations

import pytest

from bloodcells.errors import ConfigurationError
from bloodcells.pipeline import cluster
from bloodcells.precision import precision_on


@pytest.mark.parametrize(
    ("resources", "device", "scorers", "precision"),
    [
        ({"CPU": 16.0, "GPU": 2.0}, "cuda", 2, "bfloat16"),
        ({"CPU": 2.0}, "cpu", 2, "float32"),
        ({"CPU": 0.5}, "cpu", 1, "float32"),
    ],
)
def test_scorers_go_where_they_are_fast(
    resources: dict[str, float],
    device: str,
    scorers: int,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "resources_in_reach", lambda: resources)
    assert cluster.cluster_device() == device
    assert cluster.cluster_scorers() == scorers
    assert precision_on(device) == precision


def test_a_cluster_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError("Version mismatch:\n    The cluster was started with Ray: 2.9.0")

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    with pytest.raises(ConfigurationError, match=r"6379.*Version mismatch: The cluster.*unset"):
        cluster.start_ray()
