"""Further columns of tables: what a store says of each image besides label and slide.

Knows nothing of what a column means.
"""

from __future__ import annotations

import zipfile
from typing import IO, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib import format as npy_format

from bloodcells import storage
from bloodcells.errors import StoreError
from bloodcells.records import ShardKind
from bloodcells.stores.naming import index_from

TABLES: Final[tuple[ShardKind, ...]] = ("parquet", "npz")

_MAX_BYTES: Final = 2**30
"""The largest inflated array that is read: a column takes some bytes a row."""

_DAMAGE = (pa.ArrowException, zipfile.BadZipFile, EOFError, OSError, ValueError)


def read_column(uri: str, kind: ShardKind, name: str) -> list[str | None] | None:
    """Read a column of a table as text, one value a row in the order of the rows.

    Whole numbers are the same text however they are stored; gaps are ``None``.

    Args:
        uri: the table file.
        kind: what it is; only Parquet and ``.npz`` have columns.
        name: the Parquet column, or the array of the ``.npz``, ``(N,)`` or ``(N, 1)``.

    Returns:
        ``None`` where there is no such column.

    Raises:
        StoreError: the column is there but cannot be read as one value an image.
        StorageError: the file is out of reach.
    """
    if kind not in TABLES:
        return None
    try:
        with storage.open_read(uri) as file:
            values = _of_parquet(file, name) if kind == "parquet" else _of_npz(file, name)
    except _DAMAGE as error:
        raise StoreError(f"{uri}: its column {name} cannot be read ({error})") from error
    return None if values is None else [_text(value) for value in values]


def _of_parquet(file: Any, name: str) -> list[Any] | None:
    table = pq.ParquetFile(file)
    if name not in table.schema_arrow.names:
        return None
    if pa.types.is_nested(table.schema_arrow.field(name).type):
        raise ValueError("it holds lists or structs; one value an image is needed")
    values: list[Any] = table.read([name]).column(0).to_pylist()
    return values


def _of_npz(file: Any, name: str) -> list[Any] | None:
    with zipfile.ZipFile(file) as archive:
        if f"{name}.npy" not in archive.namelist():
            return None
        size = archive.getinfo(f"{name}.npy").file_size
        with archive.open(f"{name}.npy") as stream:
            shape, dtype = _header(stream)
        if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1):
            raise ValueError(f"its shape is {shape}; one value an image is needed")
        if shape[0] * dtype.itemsize > min(size, _MAX_BYTES):
            raise ValueError(f"it claims {shape[0]:,} values of {dtype.itemsize} bytes")
        with archive.open(f"{name}.npy") as stream:
            array: np.ndarray[Any, Any] = npy_format.read_array(stream, allow_pickle=False)
    values: list[Any] = array.reshape(-1).tolist()
    return values


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read the shape and type that an array announces."""
    is_first = npy_format.read_magic(stream) == (1, 0)
    read = npy_format.read_array_header_1_0 if is_first else npy_format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


def _text(value: Any) -> str | None:
    if value is None or value != value:  # NaN is a gap
        return None
    index = index_from(value)
    if index is not None and not isinstance(value, bool):
        return str(index)
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text or None
