"""What a table says of images, one value each: a label, a split. By key, or by archive and member.

The table is held in memory, about 200 bytes a row. Knows nothing of runs or of what a value means.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from bloodcells import storage
from bloodcells.cells import CLASSES
from bloodcells.errors import ConfigurationError
from bloodcells.stores.naming import label_from

LABEL_COLUMNS: Final = ("label", "class")
SPLIT_COLUMNS: Final = ("split",)

_KEYS: Final = (("image_uri",), ("shard", "member"))
"""Columns that say which image a row is about; the first that are there."""

_SUFFIXES: Final = (".parquet", ".pq")

Key = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageTable:
    """One column of a table about images.

    Attributes:
        uri: the table.
        values: by ``(image_uri,)``, or by ``(shard, member)``: the archive's file name and the
            member's; rows with an empty value are left out.
        is_by_member: which of the two.
    """

    uri: str
    values: Mapping[Key, str]
    is_by_member: bool

    def key_of(self, image_uri: str, source_uri: str) -> Key:
        """Return the key of an image of a run.

        Args:
            image_uri: the image.
            source_uri: the archive, table or folder that it is in.
        """
        if not self.is_by_member:
            return (image_uri,)
        return storage.name_of(source_uri), image_uri.removeprefix(source_uri)[1:]


def read_image_table(uri: str, flag: str, columns: tuple[str, ...]) -> ImageTable:
    """Read what a CSV or Parquet table says of images.

    Args:
        uri: the table; ``.parquet`` is Parquet, all else CSV with a header.
        flag: the flag that named it, for messages.
        columns: names of the column with the value; the first that is there counts.

    Raises:
        ConfigurationError: it is no such table, lacks a column, or says two things of an image.
        StorageError: it cannot be read.
    """
    uri = storage.normalise(uri)
    data = storage.read(uri)
    try:
        if uri.endswith(_SUFFIXES):
            table = pq.read_table(pa.BufferReader(data))
        else:
            # As text, whatever a column looks like: slides and labels may be called 007.
            known = [*(name for keys in _KEYS for name in keys), *columns]
            table = pyarrow.csv.read_csv(
                io.BytesIO(data),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(known, pa.string())
                ),
            )
    except (pa.ArrowException, OSError) as error:
        raise ConfigurationError(
            f"{flag} {uri} cannot be read ({error}); give a CSV table with a header, or Parquet"
        ) from error
    names = table.column_names
    keys = next((keys for keys in _KEYS if all(name in names for name in keys)), None)
    column = next((name for name in columns if name in names), None)
    if keys is None or column is None:
        raise ConfigurationError(
            f"{flag} {uri} needs the columns image_uri, or shard and member, and "
            f"{' or '.join(columns)}; it has {', '.join(names)}"
        )
    rows = zip(*(table[name].to_pylist() for name in (*keys, column)), strict=True)
    values: dict[Key, str] = {}
    for *key, value in rows:
        if value is None or value == "" or None in key:
            continue
        name = tuple(map(str, key))
        if values.setdefault(name, str(value)) != str(value):
            raise ConfigurationError(
                f"{flag} {uri} says both {values[name]!r} and {value!r} of {' '.join(name)}; "
                "leave one row of them"
            )
    if not values:
        raise ConfigurationError(f"{flag} {uri} has no row with a {column}")
    return ImageTable(uri=uri, values=values, is_by_member=len(keys) > 1)


def class_index(value: str) -> int:
    """Return the index in ``CLASSES`` that a label stands for; -1 where it stands for none."""
    name = label_from(int(value) if value.isdecimal() else value)
    return -1 if name is None else CLASSES.index(name)
