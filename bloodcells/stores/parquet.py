"""Parquet tables with a column of encoded images: one image a row, read by row groups.

Rows are numbered through the file. A row group is read from its front, so it is cut only where it
is too large for one shard.
"""

from __future__ import annotations

import bisect
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from bloodcells import storage
from bloodcells.errors import NoImagesError
from bloodcells.records import Member, Record, Shard
from bloodcells.stores.faults import fault, faults, too_large, why_gone
from bloodcells.stores.listing import (
    MAX_IMAGE_BYTES,
    MAX_SHARD_BYTES,
    Cut,
    Kind,
    Listed,
    ListingProblem,
    Source,
    stem_of,
)
from bloodcells.stores.naming import Naming, index_from, label_from

IMAGE_COLUMNS: Final = ("image", "bytes", "data", "image_bytes", "content")
LABEL_COLUMNS: Final = ("label", "class", "cell_type")
SLIDE_COLUMN: Final = "slide_id"

LARGEST_GROUP: Final = 8
"""Row groups up to this many shards' images are read as a whole, as one shard."""

_BATCH_BYTES = 16 * 2**20
_DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)
_DAMAGED = "the Parquet file is damaged"
_Facts = tuple[str | None, str | None]  # label and slide of a row
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """Where the table has what.

    Attributes:
        image: path of the column of encoded images, within a struct or not.
        label: column of labels, if there is one.
        label_names: what whole numbers in it stand for; ``None`` for the order of ``CLASSES``.
        slide: column of slides, if there is one.
    """

    image: str
    label: str | None
    label_names: list[str] | None
    slide: str | None


def list_parquet(source: Source, naming: Naming, shard_size: int) -> Iterator[Listed]:
    """List the rows of a table; of its columns, only labels and slides are read.

    Rows whose labels cannot be read are listed without them, so that all keep their numbers.

    Raises:
        NoImagesError: it has no column of images.
    """
    slide, tag = stem_of(source.uri), source.tag
    folder_label = naming.label_of(naming.below_root(source.uri))
    index = 0
    problems: list[str] = []
    try:
        with storage.open_read(source.uri) as file:
            table = _open(file)
            columns = _columns(source.uri, table.schema_arrow)
            in_shard = 0
            for group in range(table.num_row_groups):
                num_rows, row_bytes = _group_size(table, group, columns)
                most = _rows_a_shard(source.uri, group, num_rows, row_bytes, shard_size)
                if in_shard + num_rows > shard_size:
                    in_shard = 0
                    yield Cut()
                for number, (label, slide_id) in enumerate(
                    _facts(table, group, columns, num_rows, problems)
                ):
                    if number and number % most == 0:
                        in_shard = 0
                        yield Cut()
                    image_uri = f"{source.uri}#{index}"
                    yield Member(
                        image_uri=image_uri,
                        name=str(index),
                        offset=index,
                        size=row_bytes,
                        tag=tag,
                        slide_id=slide_id or naming.slide_of(image_uri, slide),
                        label=folder_label if columns.label is None else label,
                    )
                    index += 1
                    in_shard += 1
    except MemoryError:  # Arrow's is an ArrowException, too, and says nothing of the data
        raise
    except _DAMAGE as error:
        problems.append(f"the Parquet file is damaged behind row {index:,}: {error}")
    if problems:
        more = f" (and {len(problems) - 1:,} problems like this one)" if problems[1:] else ""
        yield ListingProblem(uri=source.uri, detail=problems[0] + more)


def read_parquet(shard: Shard) -> Iterator[Record]:
    """Read the rows of a shard from their row groups, a batch in memory at a time."""
    if gone := why_gone(shard.source_uri, shard.members[0].tag):
        yield from faults(shard.members, "missing_object", gone)
        return
    with storage.open_read(shard.source_uri) as file:
        try:
            table = _open(file)
            columns = _columns(shard.source_uri, table.schema_arrow)
            parts = _by_group(table, shard.members)
        except MemoryError:
            raise
        except _DAMAGE as error:
            yield from faults(shard.members, "undecodable", f"{_DAMAGED}: {error}")
            return
        for group, first, members in parts:
            yield from _read_group(table, columns, group, first, members)


def _by_group(table: Any, members: Sequence[Member]) -> list[tuple[int, int, Sequence[Member]]]:
    """Return row group, its first row, and the members in it, for each group that has any."""
    parts = []
    end = done = 0
    for group in range(table.num_row_groups):
        first, end = end, end + table.metadata.row_group(group).num_rows
        behind = bisect.bisect_left(members, end, lo=done, key=lambda member: member.offset)
        if behind > done:
            parts.append((group, first, members[done:behind]))
        done = behind
    return parts


def _read_group(
    table: Any, columns: _Columns, group: int, first: int, members: Sequence[Member]
) -> Iterator[Record]:
    """Read the members that lie in one row group, which begins with the row ``first``."""
    number = 0
    detail = f"{_DAMAGED}: a row group has fewer rows than it announces"
    try:
        for image in _cells(table, columns, group, [member.offset - first for member in members]):
            yield _record_of(members[number], image)
            number += 1
    except MemoryError:  # this machine's fault, and not the image's
        raise
    except _DAMAGE as error:
        # It hides what is behind it in this row group; the next one is whole.
        detail = f"{_DAMAGED}: {error}"
    yield from faults(members[number:], "undecodable", detail)


def _cells(
    table: Any, columns: _Columns, group: int, rows: Sequence[int]
) -> Iterator[bytes | None]:
    """Yield the cells of rows of a row group, in order."""
    _, row_bytes = _group_size(table, group, columns)
    batches = table.iter_batches(
        batch_size=max(1, min(256, _BATCH_BYTES // max(1, row_bytes))),
        row_groups=[group],
        columns=[columns.image],
        use_threads=False,
    )
    start = done = 0
    for batch in batches:
        cells = batch.column(0)
        if isinstance(cells, pa.StructArray):
            cells = cells.field("bytes")
        while done < len(rows) and rows[done] < start + len(batch):
            yield cells[rows[done] - start].as_py()
            done += 1
        if done == len(rows):
            return
        start += len(batch)


def _record_of(member: Member, image: bytes | None) -> Record:
    if image is None:
        return fault(member, "missing_object", "the cell is null")
    if len(image) > MAX_IMAGE_BYTES:
        return too_large(member, len(image))
    return Record(member=member, data=image)


def _open(file: IO[bytes]) -> Any:
    # Without pre-buffering, pages are read as they are needed, not a row group at once.
    return pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False)


def _columns(uri: str, schema: Any) -> _Columns:
    images = [field.name for field in schema if _holds_images(field.type)]
    named = [name for name in IMAGE_COLUMNS if name in images]
    if not named and len(images) != 1:
        raise NoImagesError(
            f"{uri} has no column of encoded images; name a binary column one of "
            f"{', '.join(IMAGE_COLUMNS)} (columns: {', '.join(schema.names)})."
        )
    name = (named or images)[0]
    is_struct = pa.types.is_struct(schema.field(name).type)
    label = next((column for column in LABEL_COLUMNS if column in schema.names), None)
    return _Columns(
        image=f"{name}.bytes" if is_struct else name,
        label=label,
        label_names=_label_names(schema, label),
        slide=SLIDE_COLUMN if SLIDE_COLUMN in schema.names else None,
    )


def _holds_images(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        # How Hugging Face datasets store images.
        position = kind.get_field_index("bytes")
        return position >= 0 and _holds_images(kind.field(position).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _label_names(schema: Any, label: str | None) -> list[str] | None:
    """Return the class names that Hugging Face datasets keep in a schema's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[label]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def _group_size(table: Any, group: int, columns: _Columns) -> tuple[int, int]:
    """Return a row group's number of rows and mean bytes a row of its images."""
    facts = table.metadata.row_group(group)
    size = next(
        facts.column(number).total_uncompressed_size
        for number in range(facts.num_columns)
        if facts.column(number).path_in_schema == columns.image
    )
    return facts.num_rows, -(-size // max(1, facts.num_rows))


def _rows_a_shard(uri: str, group: int, num_rows: int, row_bytes: int, shard_size: int) -> int:
    """Return how many rows of a row group make a shard: all of them, if it is not too large."""
    most = min(LARGEST_GROUP * shard_size, max(1, 4 * MAX_SHARD_BYTES // max(1, row_bytes)))
    if num_rows > most:
        _log.warning(
            "%s: row group %d has %s images, and each shard of it reads it from its front; "
            "rewrite the file with row_group_size=%d to read it fast.",
            *(uri, group, f"{num_rows:,}", shard_size),
        )
    return max(1, min(num_rows, most))


def _facts(
    table: Any, group: int, columns: _Columns, num_rows: int, problems: list[str]
) -> Iterator[_Facts]:
    """Yield what is known of each row of a row group; of damage, ``problems`` gets a sentence."""
    number = 0
    try:
        for facts in itertools.islice(_read_facts(table, group, columns, num_rows), num_rows):
            yield facts
            number += 1
        error: Exception | None = None
    except MemoryError:
        raise
    except _DAMAGE as damage:
        error = damage
    if number < num_rows:
        problems.append(
            f"labels and slides of {num_rows - number:,} images are unknown: row group {group} is "
            f"damaged ({error or 'it has fewer rows than it announces'})"
        )
        yield from itertools.repeat((None, None), num_rows - number)


def _read_facts(table: Any, group: int, columns: _Columns, num_rows: int) -> Iterator[_Facts]:
    wanted = [name for name in (columns.label, columns.slide) if name is not None]
    if not wanted:
        yield from itertools.repeat((None, None), num_rows)
        return
    for batch in table.iter_batches(row_groups=[group], columns=wanted, use_threads=False):
        for row in batch.to_pylist():
            label = row.get(columns.label)
            names = columns.label_names
            if names is not None and (position := index_from(label)) is not None:
                label = names[position] if 0 <= position < len(names) else None
            slide = row.get(columns.slide)
            yield label_from(label), None if slide is None else str(slide)


KIND: Final = Kind(list_source=list_parquet, read=read_parquet, cuts_itself=True)
