"""What listing a store yields, and the limits that every kind of store keeps.

Knows nothing of any one kind of store.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from bloodcells.records import Member, Record, Shard, ShardKind
from bloodcells.stores.naming import Naming

MAX_IMAGE_BYTES: Final = 64 * 2**20
"""The largest encoded image that is read. A single cell takes kilobytes; a zip bomb takes more."""

MAX_SHARD_BYTES: Final = 256 * 2**20
"""Encoded bytes at which a shard is closed although it has room for more images."""

MAX_STREAMED_BYTES: Final = 2**30
"""The largest ``.tar.gz`` or compressed ``.npz``: not readable by range, each is one shard."""

MAX_STREAMED_IMAGES: Final = 20_000
"""The most images in one of these: a scorer holds the pixels of one shard at once."""

_NUM_EXAMPLES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A part of a store that one task plans: an archive, a table file, or a folder.

    Attributes:
        uri: normalised URI.
        kind: how to list and read it.
        size: bytes; 0 for a folder.
        tag: the file's fingerprint when it was listed; empty for a folder.
        root: the store's root, to which a folder's slide ids are relative.
        recursive: whether the folders in a folder belong to it, too.
        after: of a folder, only what has a greater name (its path below ``uri``) belongs to it.
        upto: only what has this or a lesser name does; empty for all.
        at_most: files after which the listing of a folder stops, where what is left can be handed
            on as sources of its own; 0 to list all of it.
    """

    uri: str
    kind: ShardKind
    size: int
    tag: str
    root: str
    recursive: bool = True
    after: str = ""
    upto: str = ""
    at_most: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingProblem:
    """A source that could not be listed in full, or whose images are not all told in full.

    Attributes:
        uri: the source.
        detail: what is wrong, in a sentence for a person.
    """

    uri: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignored:
    """What a source holds besides images.

    Attributes:
        uri: the source.
        count: number of such files.
        examples: names of the first of them.
    """

    uri: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """Says that a shard should end here: what follows is not read with what came before."""


Listed = Member | Source | ListingProblem | Ignored | Cut
"""What listing yields; a ``Source`` is an archive found in a folder, or what is left of that."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of store: how to list it and how to read a shard of it.

    Attributes:
        list_source: yields what is in a source; ``shard_size`` is a hint for its cuts.
        read: yields the records of a shard, one for every member, in member order.
        cuts_itself: whether shards end at its ``Cut`` only, and not at a number of images.
    """

    list_source: Callable[[Source, Naming, int], Iterator[Listed]]
    read: Callable[[Shard], Iterator[Record]]
    cuts_itself: bool = False


@dataclass(kw_only=True)
class IgnoredFiles:
    """Counts what is no image while a source is listed."""

    uri: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Count one more file."""
        self.count += 1
        if len(self.examples) < _NUM_EXAMPLES:
            self.examples.append(name)

    def summary(self) -> Iterator[Ignored]:
        """Yield the summary, if there is anything to tell."""
        if self.count:
            yield Ignored(uri=self.uri, count=self.count, examples=tuple(self.examples))


_SUFFIXES: Final[tuple[tuple[str, ShardKind], ...]] = (
    (".tar.gz", "targz"),
    (".tgz", "targz"),
    (".tar", "tar"),
    (".zip", "zip"),
    (".parquet", "parquet"),
    (".pq", "parquet"),
    (".npz", "npz"),
)


def kind_of(uri: str) -> ShardKind | None:
    """Return what kind of archive or table a file's name says it is, or ``None``."""
    lowered = uri.lower()
    return next((kind for suffix, kind in _SUFFIXES if lowered.endswith(suffix)), None)


def stem_of(uri: str) -> str:
    """Return the name of an archive without its ending: the slide that it holds."""
    name = uri.rsplit("/", 1)[-1]
    endings = "|".join(re.escape(suffix) for suffix, _ in _SUFFIXES)
    return re.sub(rf"(?:{endings})$", "", name, flags=re.IGNORECASE) or name
