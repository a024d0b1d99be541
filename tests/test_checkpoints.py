"""What a training leaves while it goes on: the newest state whole, older ones gone; on S3 too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bloodcells import storage
from bloodcells.errors import RunError
from bloodcells.training.checkpoints import (
    best_weights,
    forget_all,
    forget_best,
    newest_checkpoint,
    save_best,
    save_checkpoint,
)
from tests.s3 import S3Server


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "training")
    server: S3Server = request.getfixturevalue("s3")
    return f"{server.uri}/checkpoints/{tmp_path.name}"


def names(folder: str) -> set[str]:
    return {entry.name for entry in storage.listdir(folder)}


def test_the_newest_state_is_found_and_older_ones_go(folder: str) -> None:
    assert newest_checkpoint(folder) is None
    for num_steps in (9, 10, 1000):
        save_checkpoint(folder, num_steps, {"steps": num_steps, "model": {"w": torch.ones(2)}})
        found = newest_checkpoint(folder)
        assert found is not None
        assert found["steps"] == num_steps
    assert names(folder) == {"checkpoint-000001000.pt"}


def test_best_weights_are_kept_until_no_checkpoint_needs_them(folder: str) -> None:
    save_best(folder, 0, 3, {"w": torch.tensor([3.0])})
    save_best(folder, 1, 0, {"w": torch.tensor([4.0])})
    assert best_weights(folder, 0, 3)["w"].item() == 3
    forget_best(folder, but=(1, 0))
    assert names(folder) == {"best-1-0.pt"}
    save_checkpoint(folder, 1, {})
    storage.put(storage.join(folder, "training.json"), b"{}")
    forget_all(folder)
    assert names(folder) == {"training.json"}


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no zip"])
def test_a_state_that_cannot_be_read(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    save_checkpoint(str(tmp_path), 5, {"model": {"w": torch.ones(1000)}})
    path = tmp_path / "checkpoint-000000005.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError, match=r"checkpoint-000000005\.pt cannot be read .*--restart"):
        newest_checkpoint(str(tmp_path))
