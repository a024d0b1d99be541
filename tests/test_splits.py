"""Splits: a pure function of the group, the table's rows and no others, a class in each split."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloodcells.errors import ConfigurationError
from bloodcells.splits import (
    LEAST_GROUPS,
    Shares,
    assign_splits,
    position,
    read_split_table,
    split_from,
    split_of,
)

TABLE = """shard,member,class,split
a.tar,x/1.jpg,x,train
a.tar,x/2.jpg,x,val
a.tar,x/3.jpg,x,Validation
b.tar,x/1.jpg,x,test
b.tar,x/2.jpg,x,
b.tar,x/3.jpg,x,holdout
"""

groups = st.lists(st.tuples(st.text(min_size=1, max_size=6), st.sampled_from("abc")), max_size=60)


def write(folder: Path, text: str) -> str:
    path = folder / "splits.csv"
    path.write_text(text)
    return str(path)


# A group's split -------------------------------------------------------------------------------


def test_the_hash_is_fixed_for_ever() -> None:
    """Values that a change of the hash would move; datasets in the world rely on them."""
    assert position("slide-1") == pytest.approx(0.2593846997, abs=1e-9)
    assert [split_of(f"slide-{i}") for i in range(12)] == [
        *("test", "train", "train", "test", "val", "val"),
        *("train", "train", "train", "val", "train", "train"),
    ]


@given(st.text(max_size=20), st.floats(0, 0.5), st.floats(0, 0.49))
def test_a_split_follows_from_the_position(group: str, val: float, test: float) -> None:
    place = position(group)
    assert 0 <= place < 1
    expected = "val" if place < val else "test" if place >= 1 - test else "train"
    assert split_of(group, Shares(val=val, test=test)) == expected


def test_the_shares_are_met() -> None:
    splits = [split_of(str(i)) for i in range(20_000)]
    for split, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        assert splits.count(split) / len(splits) == pytest.approx(share, abs=0.01)


def test_shares_that_leave_nothing() -> None:
    with pytest.raises(ConfigurationError, match="leave nothing to train on"):
        Shares(val=0.5, test=0.5)


# Many groups -----------------------------------------------------------------------------------


@given(groups, groups)
def test_adding_images_moves_none(old: list[tuple[str, str]], new: list[tuple[str, str]]) -> None:
    """Without a memory, but for classes that lacked a split; with one, never."""
    old, new = ([(f"{label} {group}", label) for group, label in part] for part in (old, new))
    both = [*old, *new]
    before = assign_splits([g for g, _ in old], [c for _, c in old])
    after = assign_splits([g for g, _ in both], [c for _, c in both])
    for group, label in old:
        by_hash = {split_of(g) for g, c in old if c == label}
        if by_hash == {"train", "val", "test"}:
            assert after[group] == before[group] == split_of(group)
    after = assign_splits([g for g, _ in both], [c for _, c in both], kept=before)
    assert {group: after[group] for group in before} == before


@given(groups)
def test_no_order_matters_and_only_tiny_classes_are_an_exception(
    images: list[tuple[str, str]],
) -> None:
    names, labels = [g for g, _ in images], [c for _, c in images]
    splits = assign_splits(names, labels)
    again = assign_splits(names[::-1], labels[::-1])
    assert splits == again
    by_class = {label: {g for g, c in images if c == label} for label in labels}
    for group in splits:
        if splits[group] != split_of(group):
            mine = [of_class for of_class in by_class.values() if group in of_class]
            assert any(
                len(of_class) >= LEAST_GROUPS
                and not any(split_of(other) == splits[group] for other in of_class)
                for of_class in mine
            ), "a group moves only where a class would lack its split"


@given(st.sets(st.text(min_size=1, max_size=6), min_size=LEAST_GROUPS, max_size=9))
def test_a_class_of_three_groups_is_in_each_split(names: set[str]) -> None:
    splits = assign_splits(sorted(names), ["one"] * len(names))
    assert set(splits.values()) == {"train", "val", "test"}


def test_two_groups_are_left_as_they_fall() -> None:
    names = [str(i) for i in range(200) if split_of(str(i)) == "train"][:2]
    assert assign_splits(names, ["one", "one"]) == dict.fromkeys(names, "train")


def test_the_lowest_and_the_highest_are_taken() -> None:
    names = sorted((str(i) for i in range(40) if split_of(str(i)) == "train"), key=position)
    splits = assign_splits(names, ["one"] * len(names))
    assert splits[names[0]] == "val" and splits[names[-1]] == "test"
    assert {splits[name] for name in names[1:-1]} == {"train"}


def test_no_class_loses_its_last_image_to_another() -> None:
    trained = [str(i) for i in range(200) if split_of(str(i)) == "train"][:3]
    lowest = min(trained, key=position)
    splits = assign_splits([*trained, lowest], ["one", "one", "one", "rare"])
    assert splits[lowest] == "train"
    assert "val" in splits.values()


def test_what_was_given_is_kept() -> None:
    names = [str(i) for i in range(30)]
    assert assign_splits(names, ["one"] * 30, kept={"3": "test", "4": "val"})["3"] == "test"


# Tables ----------------------------------------------------------------------------------------


def test_a_whole_table(tmp_path: Path) -> None:
    splits = read_split_table(write(tmp_path, TABLE))
    assert splits[("b.tar", "x/1.jpg")] == "test"
    assert len(splits) == 4


def test_words_for_splits() -> None:
    assert [split_from(word) for word in ("valid", " VAL ", "dev", None)] == [
        *("val", "val", None, None)
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shard,member,class\n", "lacks the column split"),
        ("", "lacks the column shard"),
        ("shard,member,split\na,b,val\n", "has no row whose split is 'train'"),
        ('shard,member,split\na,"b\n', "has no row whose split is 'train'"),
    ],
)
def test_a_table_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"--splits .*splits.csv {message}"):
        read_split_table(write(tmp_path, text))


def test_not_a_text(tmp_path: Path) -> None:
    (tmp_path / "splits.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="is not a CSV table"):
        read_split_table(str(tmp_path / "splits.csv"))
