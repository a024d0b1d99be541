"""Which labelled images train, validate and test: by a hash of their group, or as a table says.

A group's split depends on the group alone: not on what else is in the store, on any order, or on a
seed. Knows nothing of pixels or models.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Final, Literal

from bloodcells import storage
from bloodcells.errors import ConfigurationError

Split = Literal["train", "val", "test"]

SPLITS: Final[tuple[Split, ...]] = ("train", "val", "test")
COLUMNS: Final = ("shard", "member", "split")
LEAST_GROUPS: Final = 3
"""Groups from which on a class has an image in each split."""

_WORDS: Final[Mapping[str, Split]] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How large validation and test are, as parts of all groups.

    Attributes:
        val: from the lower end of the hashes.
        test: from the upper end.
    """

    val: float = 0.1
    test: float = 0.1

    def __post_init__(self) -> None:
        if not (self.val >= 0 and self.test >= 0 and self.val + self.test < 1):
            raise ConfigurationError(
                f"shares of {self.val} for validation and {self.test} for testing leave nothing to "
                "train on; give two numbers from 0 whose sum is below 1"
            )

    def to_dict(self) -> dict[str, float]:
        """Return the fields as JSON-ready values."""
        return asdict(self)


DEFAULT_SHARES: Final = Shares()


def position(group: str) -> float:
    """Return where a group lies in [0, 1): its sha256 as a fraction."""
    digest = hashlib.sha256(group.encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48  # exact in a float


def split_of(group: str, shares: Shares = DEFAULT_SHARES) -> Split:
    """Return a group's split, a pure function of its name and the shares."""
    place = position(group)
    if place < shares.val:
        return "val"
    return "test" if place >= 1 - shares.test else "train"


def split_from(word: str | None) -> Split | None:
    """Return the split that a word of a store's own column means, or ``None``."""
    return None if word is None else _WORDS.get(word.strip().lower())


def assign_splits(
    groups: Sequence[str],
    labels: Sequence[str],
    *,
    shares: Shares = DEFAULT_SHARES,
    kept: Mapping[str, Split] | None = None,
) -> dict[str, Split]:
    """Give every group its split: as before, else by its hash, with an exception for tiny classes.

    Where that leaves a class of at least ``LEAST_GROUPS`` groups without any image in a split, the
    group of that class with the lowest hash goes to ``val``, the one with the highest to ``test``,
    unless another class would thereby lose its last one where it was.

    Args:
        groups: of each image to be used, N.
        labels: class of each image, N.
        shares: how large validation and test are.
        kept: splits of groups that an earlier dataset gave; they never change.

    Returns:
        The split of each group.
    """
    kept = kept or {}
    assigned = {
        group: kept.get(group) or split_of(group, shares) for group in dict.fromkeys(groups)
    }
    members: dict[str, set[str]] = defaultdict(set)
    classes_of: dict[str, set[str]] = defaultdict(set)
    for group, label in zip(groups, labels, strict=True):
        members[label].add(group)
        classes_of[group].add(label)
    held = {
        label: Counter(assigned[group] for group in of_class) for label, of_class in members.items()
    }
    wanted: list[tuple[Split, bool]] = [("val", False)] if shares.val else []
    wanted += [("test", True)] if shares.test else []
    wanted += [("train", False)]
    for label in sorted(members):
        if len(members[label]) < LEAST_GROUPS:
            continue
        for split, from_above in wanted:
            if held[label][split]:
                continue
            for group in sorted(members[label], key=position, reverse=from_above):
                before = assigned[group]
                if group in kept or any(held[own][before] < 2 for own in classes_of[group]):
                    continue
                assigned[group] = split
                for own in classes_of[group]:
                    held[own][before] -= 1
                    held[own][split] += 1
                break
    return assigned


def read_split_table(uri: str) -> dict[tuple[str, str], Split]:
    """Read a CSV table with columns ``shard`` (archive's file name), ``member`` and ``split``.

    ``val``, ``valid`` and ``validation`` mean the same. Rows with any other word than these,
    ``train`` and ``test`` are left out.

    Returns:
        The split of each (shard, member).

    Raises:
        ConfigurationError: it is no such table, or holds no training image.
        StorageError: it cannot be read.
    """
    try:
        table = csv.DictReader(StringIO(storage.read(storage.normalise(uri)).decode("utf-8-sig")))
        missing = [name for name in COLUMNS if name not in (table.fieldnames or ())]
        if missing:
            raise ConfigurationError(
                f"--splits {uri} lacks the column {missing[0]}; it needs {', '.join(COLUMNS)}"
            )
        splits: dict[tuple[str, str], Split] = {}
        for row in table:
            if split := split_from(row["split"]):
                splits[row["shard"], row["member"]] = split
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"--splits {uri} is not a CSV table: {error}") from error
    if "train" not in splits.values():
        raise ConfigurationError(f"--splits {uri} has no row whose split is 'train'")
    return splits
