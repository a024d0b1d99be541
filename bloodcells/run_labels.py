"""The labels of a run's images: the run's own, or those of a table; and which images count at all.

Knows the run's plan, and nothing of scores or figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bloodcells import publish, storage
from bloodcells.errors import ConfigurationError
from bloodcells.labels import ImageTable, class_index
from bloodcells.parts import class_indices, readable

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PlannedPart:
    """Where the images of a shard come from, and where the plan says so."""

    source_uri: str
    num_images: int
    plan_uri: str
    plan_row: int


def plan_of(run_uri: str) -> dict[str, PlannedPart]:
    """Read where each shard of the plan comes from, without its members."""
    plan = {}
    for plan_uri in publish.plan_files(run_uri):
        with readable(plan_uri), storage.open_read(plan_uri) as file:
            rows = pq.read_table(file, columns=["shard_id", "source_uri", "num_images"])
        for number, row in enumerate(rows.to_pylist()):
            plan[row["shard_id"]] = PlannedPart(
                source_uri=row["source_uri"],
                num_images=row["num_images"],
                plan_uri=plan_uri,
                plan_row=number,
            )
    return plan


class RunLabels:
    """Which images of a run count, and what their labels are."""

    def __init__(
        self,
        plan: Mapping[str, PlannedPart],
        labels: ImageTable | None,
        splits: ImageTable | None,
        split: str | None,
    ) -> None:
        self._plan = plan
        self._labels, self._splits, self._split = labels, splits, split
        self.used: set[tuple[str, ...]] = set()
        self.unknown: Counter[str] = Counter()
        self.num_contradicting = 0
        self._num_in_split = 0
        for table in (labels, splits):
            if table is not None and table.is_by_member:
                _require_different_names({p.source_uri for p in plan.values()}, table)

    def chosen(self, part: pa.Table) -> npt.NDArray[np.bool_]:
        """Return which rows are in the split, ``bool (N,)``."""
        if self._splits is None:
            return np.ones(len(part), bool)
        keys = self._keys(part, self._splits)
        chosen = np.array([self._splits.values.get(key) == self._split for key in keys], bool)
        self._num_in_split += int(chosen.sum())
        return chosen

    def _by_table(self, part: pa.Table) -> IntArray:
        """Return the class of each row by the table of labels, ``int64 (N,)``, -1 for none."""
        found = np.full(len(part), -1, np.int64)
        if self._labels is None:
            return found
        for row, key in enumerate(self._keys(part, self._labels)):
            value = self._labels.values.get(key)
            if value is None:
                continue
            self.used.add(key)
            found[row] = class_index(value)
            if found[row] < 0:
                self.unknown[value] += 1
        return found

    def of_scored(self, part: pa.Table) -> IntArray:
        """Return the class of each row of a score part, ``int64 (N,)``, -1 for none."""
        own = class_indices(part["label"])
        if self._labels is None:
            return own
        found = self._by_table(part)
        self.num_contradicting += int(((own >= 0) & (found >= 0) & (own != found)).sum())
        return found

    def of_quarantined(self, part: pa.Table) -> IntArray:
        """Return the class of each row of a quarantine part, ``int64 (N,)``, -1 for none.

        The rows carry no label of their own; the plan knows it.
        """
        if self._labels is not None or len(part) == 0:
            return self._by_table(part)
        planned = self._plan[part["shard_id"][0].as_py()]
        shard = publish.read_planned(planned.plan_uri, planned.plan_row)
        own = {member.image_uri: member.label for member in shard.members}
        names = pa.array([own.get(uri) for uri in part["image_uri"].to_pylist()], pa.string())
        return class_indices(pa.chunked_array([names]))

    def require_matches(self) -> None:
        """Refuse a table that is about other images.

        Raises:
            ConfigurationError: no image of the run is in it.
        """
        remedy = "its keys are image_uri as in the run's scores, or archive's file name and member"
        if self._splits is not None and self._num_in_split == 0:
            raise ConfigurationError(
                f"--split {self._split}: {self._splits.uri} has no image of the run in that split; "
                f"{remedy}"
            )
        if self._labels is not None and not self.used:
            raise ConfigurationError(
                f"--labels {self._labels.uri} is about no image of the run; {remedy}"
            )

    def _keys(self, part: pa.Table, table: ImageTable) -> list[tuple[str, ...]]:
        source_uri = self._plan[part["shard_id"][0].as_py()].source_uri if len(part) else ""
        return [table.key_of(uri, source_uri) for uri in part["image_uri"].to_pylist()]


def _require_different_names(source_uris: set[str], table: ImageTable) -> None:
    """Refuse a table by archives' file names where two archives of the run share one."""
    names = Counter(map(storage.name_of, source_uris))
    name, count = names.most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise ConfigurationError(
            f"{table.uri} names images by archive and member, but {count} archives of the run are "
            f"called {name}: give a table by image_uri"
        )
