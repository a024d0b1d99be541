"""Splits: the table's rows and no others, or the same share of every class by content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloodcells.errors import ConfigurationError
from bloodcells.splits import draw_validation, read_splits

TABLE = """shard,member,class,split
a.tar,x/1.jpg,x,train
a.tar,x/2.jpg,x,val
b.tar,x/1.jpg,x,test
b.tar,x/2.jpg,x,
"""


def write(folder: Path, text: str) -> str:
    path = folder / "splits.csv"
    path.write_text(text)
    return str(path)


def test_only_train_and_val_rows_are_kept(tmp_path: Path) -> None:
    splits = read_splits(write(tmp_path, TABLE))
    assert splits == {("a.tar", "x/1.jpg"): "train", ("a.tar", "x/2.jpg"): "val"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shard,member,class\n", "lacks the column split"),
        ("", "lacks the column shard"),
        ("shard,member,split\na,b,train\n", "has no row whose split is 'val'"),
        ("shard,member,split\na,b,val\n", "has no row whose split is 'train'"),
        ('shard,member,split\na,"b\n', "has no row whose split is 'train'"),
    ],
)
def test_a_table_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"--splits .*splits.csv {message}"):
        read_splits(write(tmp_path, text))


def test_not_a_text(tmp_path: Path) -> None:
    (tmp_path / "splits.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="is not a CSV table"):
        read_splits(str(tmp_path / "splits.csv"))


@given(st.lists(st.tuples(st.text("0123456789abcdef", min_size=4, max_size=4), st.integers(0, 3))))
def test_validation_by_content(images: list[tuple[str, int]]) -> None:
    images = [(f"{label}{name}", label) for name, label in images]
    hashes = [name for name, _ in images]
    labels = np.array([label for _, label in images], int)
    chosen = draw_validation(hashes, labels)
    side: dict[str, bool] = {}
    for name, own in zip(hashes, chosen, strict=True):
        assert side.setdefault(name, bool(own)) == own, "equal images fall on the same side"
    for label in set(labels.tolist()):
        distinct = {name for name, other in images if other == label}
        assert sum(side[name] for name in distinct) == max(1, round(0.1 * len(distinct)))
    order = np.random.default_rng(0).permutation(len(images))
    again = draw_validation([hashes[i] for i in order], labels[order])
    assert np.array_equal(again, chosen[order])
