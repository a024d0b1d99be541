"""What of a store belongs together, and what the store itself says of its splits.

Knows nothing of pixels, and reads no image: only listings and columns of tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from bloodcells.errors import ConfigurationError
from bloodcells.records import Member, Shard
from bloodcells.splits import Split, split_from
from bloodcells.storage import name_of
from bloodcells.stores import Ignored, ListingProblem, Source, plan_source
from bloodcells.stores.columns import read_column

AUTO, IMAGE, SLIDE = "auto", "image", "slide"
SLIDE_COLUMN: Final = "slide_id"
SPLIT_COLUMN: Final = "split"

IN_NO_SPLIT: Final = ""
"""``own_splits`` of an image for which the store's own split column has no word that we know."""

SHARD_SIZE: Final = 500
"""Images that one task reads: some seconds of work."""


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """What belongs together, and splits that are given.

    Attributes:
        group_by: ``image``; ``slide``; ``auto``, which is the slide where the store says it in a
            column ``slide_id`` or there is a pattern, else the image; or a column of the store's
            tables. Where a store brings its own splits, ``auto`` is the image.
        slide_pattern: as for ``open_store``.
        splits: the split of each (archive's file name, member); images that it lacks are in none.
    """

    group_by: str = AUTO
    slide_pattern: str | None = None
    splits: Mapping[tuple[str, str], Split] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.group_by:
            raise ConfigurationError(
                f"--group-by is empty; give {AUTO}, {IMAGE}, {SLIDE}, or the name of a column"
            )


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A shard with what the store says of its images besides.

    Attributes:
        shard: the shard.
        groups: key of the group of each member; ``None`` for the image itself.
        own_splits: the split that the store gives each member, ``IN_NO_SPLIT`` where its word is
            none of ours; ``None`` where the store gives none.
    """

    shard: Shard
    groups: tuple[str | None, ...]
    own_splits: tuple[str | None, ...]


def list_source(source: Source, grouping: Grouping) -> Iterator[Listed | ListingProblem | Ignored]:
    """List a source, and look up its images' groups and splits.

    Raises:
        ConfigurationError: the store has no column of the name that was asked for.
        StoreError: the source cannot be used as it is.
        StorageError: it is out of reach.
    """
    columns: _Columns | None = None
    for item in plan_source(source, shard_size=SHARD_SIZE, slide_pattern=grouping.slide_pattern):
        if not isinstance(item, Shard):
            yield item
            continue
        if columns is None or columns.uri != item.source_uri:
            columns = _Columns(item, grouping)
        yield Listed(
            shard=item,
            groups=tuple(columns.group_of(member) for member in item.members),
            own_splits=tuple(columns.split_of(member) for member in item.members),
        )


class _Columns:
    """What one archive, table or folder says of its images; its columns are read once."""

    def __init__(self, shard: Shard, grouping: Grouping) -> None:
        self.uri = shard.source_uri
        self._archive = name_of(shard.source_uri)
        self._table = grouping.splits
        self._splits = None
        if self._table is None:
            self._splits = read_column(self.uri, shard.kind, SPLIT_COLUMN)
        self._groups: list[str | None] | None = None
        self._by_slide = False
        self._find_groups(shard, grouping)

    def _find_groups(self, shard: Shard, grouping: Grouping) -> None:
        if grouping.group_by == AUTO:
            if self._table is None and self._splits is None:
                self._by_slide = grouping.slide_pattern is not None
                if not self._by_slide:
                    self._groups = read_column(self.uri, shard.kind, SLIDE_COLUMN)
        elif grouping.group_by == SLIDE:
            self._by_slide = True
        elif grouping.group_by != IMAGE:
            self._groups = read_column(self.uri, shard.kind, grouping.group_by)
            if self._groups is None:
                raise ConfigurationError(
                    f"--group-by {grouping.group_by}: {self.uri} has no column of that name; only "
                    f"Parquet and .npz files have any (give {SLIDE} to group by slide, {IMAGE} not "
                    "to group)"
                )

    def group_of(self, member: Member) -> str | None:
        if self._by_slide:
            return member.slide_id
        return _at(self._groups, member.offset)

    def split_of(self, member: Member) -> str | None:
        if self._table is not None:
            return self._table.get((self._archive, member.name), IN_NO_SPLIT)
        if self._splits is None:
            return None
        return split_from(_at(self._splits, member.offset)) or IN_NO_SPLIT


def _at(column: list[str | None] | None, row: int) -> str | None:
    return column[row] if column is not None and row < len(column) else None
