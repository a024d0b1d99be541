"""Which labelled images train and which validate: read from a table, or drawn from content.

Knows nothing of pixels or models.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from bloodcells import storage
from bloodcells.errors import ConfigurationError

Split = Literal["train", "val"]

_SPLITS: Final[Mapping[str, Split]] = {"train": "train", "val": "val"}
COLUMNS: Final = ("shard", "member", "split")


def read_splits(uri: str) -> dict[tuple[str, str], Split]:
    """Read a CSV table with columns ``shard`` (archive's file name), ``member`` and ``split``.

    Rows whose split is neither ``train`` nor ``val`` are left out, so nothing that the table
    holds back (``test``) can be trained on or chosen by.

    Returns:
        The split of each (shard, member).

    Raises:
        ConfigurationError: it is no such table, or holds no training or no validation image.
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
            if split := _SPLITS.get(row["split"]):
                splits[row["shard"], row["member"]] = split
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"--splits {uri} is not a CSV table: {error}") from error
    for wanted in ("train", "val"):
        if wanted not in splits.values():
            raise ConfigurationError(f"--splits {uri} has no row whose split is {wanted!r}")
    return splits


def draw_validation(
    content_hashes: Sequence[str], labels: npt.NDArray[np.integer], share: float = 0.1
) -> npt.NDArray[np.bool_]:
    """Choose validation images, the same share of every class, by what the images contain.

    The choice depends on no seed and no order, and equal images always fall on the same side.

    Args:
        content_hashes: sha256 of each image's bytes, N hex strings.
        labels: class of each image, integer ``(N,)``.
        share: of each class's distinct images, rounded, at least one.

    Returns:
        ``bool (N,)``, whether an image validates.
    """
    by_class: Mapping[int, set[str]] = {int(label): set() for label in np.unique(labels)}
    for content_hash, label in zip(content_hashes, labels, strict=True):
        by_class[int(label)].add(content_hash)
    chosen: set[str] = set()
    for hashes in by_class.values():
        chosen.update(sorted(hashes)[: max(1, round(share * len(hashes)))])
    return np.array([content_hash in chosen for content_hash in content_hashes], bool)
