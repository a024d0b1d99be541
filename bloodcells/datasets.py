"""A prepared dataset: which images train, validate and test, and what speaks against the others.

``DATASET/`` holds ``manifest.parquet``, ``report.html`` and ``dataset.json``, which is written last
and vouches for the manifest by its digest. No image is in it. Knows nothing of how findings and
splits are made.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bloodcells import storage
from bloodcells.cells import CLASSES
from bloodcells.errors import ConfigurationError, DatasetError, NotFoundError, StoreError
from bloodcells.publish import parquet_bytes
from bloodcells.records import FINDINGS, MANIFEST_SCHEMA
from bloodcells.runs import environment, now
from bloodcells.splits import SPLITS

FORMAT: Final = 1
DATASET_NAME: Final = "dataset.json"
MANIFEST_NAME: Final = "manifest.parquet"
REPORT_NAME: Final = "report.html"
OTHERS: Final = ("run.json", "bundle.json", "plan", "scores")
"""What shows that a folder is something else, which a dataset must not be written into."""

LEAST_IMAGES: Final = 2
"""Usable images below which a class cannot be learnt and judged."""

_REMEDY: Final = "make it anew with python -m jobs.prepare"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """``dataset.json`` in memory.

    Attributes:
        uri: the dataset's folder.
        digest: sha256 of ``manifest.parquet``, 64 hex digits.
        stores: URIs of the stores, normalised.
        settings: what the content depends on besides the stores.
        counts: ``images``, ``used``, ``ignored`` (files that are no images), ``splits`` (used
            images by split and class) and ``findings`` (images by finding).
        source_problems: sources that were not listed in full: ``uri`` and ``detail``.
        environment: versions of what made it.
        created: time in UTC, ISO 8601.
    """

    uri: str
    digest: str
    stores: tuple[str, ...]
    settings: Mapping[str, Any]
    counts: Mapping[str, Any]
    source_problems: tuple[Mapping[str, str], ...] = ()
    environment: Mapping[str, str] = field(default_factory=environment)
    created: str = field(default_factory=now)


def open_dataset(uri: str) -> Dataset:
    """Read what a dataset says of itself.

    Raises:
        DatasetError: there is none at ``uri``, or ``dataset.json`` is not one of ours.
        StorageError: it is out of reach.
    """
    uri = storage.normalise(uri)
    try:
        record = json.loads(storage.read(storage.join(uri, DATASET_NAME)))
    except NotFoundError as error:
        raise DatasetError(
            f"{uri} is no prepared dataset: it has no {DATASET_NAME}; {_REMEDY}"
        ) from error
    except ValueError as error:
        raise DatasetError(f"{uri}/{DATASET_NAME} is damaged ({error}); {_REMEDY}") from error
    try:
        if record.pop("format") != FORMAT:
            raise ValueError(f"it is of another format than {FORMAT}")
        stores, problems = tuple(record.pop("stores")), tuple(record.pop("source_problems"))
        return Dataset(uri=uri, stores=stores, source_problems=problems, **record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{uri}/{DATASET_NAME} is no dataset's record ({type(error).__name__}: {error}); "
            f"{_REMEDY}"
        ) from error


def find_dataset(uri: str) -> Dataset | None:
    """Read what a dataset says of itself; ``None`` where there is none.

    Raises:
        DatasetError: ``dataset.json`` is there but is not one of ours.
        ConfigurationError: the folder is something else.
    """
    uri = storage.normalise(uri)
    if storage.exists(storage.join(uri, DATASET_NAME)):
        return open_dataset(uri)
    for name in OTHERS:
        if storage.exists(storage.join(uri, name)):
            raise ConfigurationError(
                f"--out {uri} holds {name}: it is no dataset's folder; choose another --out"
            )
    return None


def read_manifest(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a dataset's manifest, if it is the one that ``dataset.json`` vouches for.

    Args:
        uri: the dataset's folder.
        columns: those to return; all by default.

    Returns:
        Rows in ``MANIFEST_SCHEMA``, ordered by ``image_uri``.

    Raises:
        DatasetError: the dataset or its manifest is missing, damaged, or was changed.
    """
    dataset = open_dataset(uri)
    place = storage.join(dataset.uri, MANIFEST_NAME)
    try:
        data = storage.read(place)
    except NotFoundError as error:
        raise DatasetError(f"{place} is missing; {_REMEDY}") from error
    if hashlib.sha256(data).hexdigest() != dataset.digest:
        raise DatasetError(
            f"{place} is not the manifest that {DATASET_NAME} beside it was written for; {_REMEDY}"
        )
    wanted = None if columns is None else list(columns)
    return pq.read_table(pa.BufferReader(data), columns=wanted)


def write_dataset(
    uri: str,
    manifest: pa.Table,
    *,
    stores: Sequence[str],
    settings: Mapping[str, Any],
    num_ignored: int = 0,
    problems: Sequence[Mapping[str, str]] = (),
    draw: Callable[[Dataset, pa.Table], str] | None = None,
) -> Dataset:
    """Write a dataset, ``dataset.json`` last; over the one that was there.

    Args:
        uri: the dataset's folder.
        manifest: rows in ``MANIFEST_SCHEMA``, ordered by ``image_uri``.
        stores: where the images are.
        settings: what the manifest depends on besides, JSON-ready.
        num_ignored: files that are no images.
        problems: sources that were not listed in full.
        draw: makes the HTML report; none is written without it.

    Raises:
        StorageError: the folder cannot be written.
    """
    uri = storage.normalise(uri)
    data = parquet_bytes(manifest.cast(MANIFEST_SCHEMA))
    dataset = Dataset(
        uri=uri,
        digest=hashlib.sha256(data).hexdigest(),
        stores=tuple(storage.normalise(store) for store in stores),
        settings=dict(settings),
        counts={**count_manifest(manifest), "ignored": num_ignored},
        source_problems=tuple(problems),
    )
    storage.put(storage.join(uri, MANIFEST_NAME), data)
    if draw is not None:
        storage.put(storage.join(uri, REPORT_NAME), draw(dataset, manifest).encode())
    record = {"format": FORMAT, **asdict(dataset)}
    del record["uri"]
    storage.put(storage.join(uri, DATASET_NAME), json.dumps(record, indent=2).encode() + b"\n")
    return dataset


def count_manifest(manifest: pa.Table) -> dict[str, Any]:
    """Count a manifest: images, used ones by split and class, images by finding."""
    used = manifest.filter(manifest["used"])
    by_split = Counter(zip(used["split"].to_pylist(), used["label"].to_pylist(), strict=True))
    found = Counter(name for names in manifest["findings"].to_pylist() for name in names)
    return {
        "images": len(manifest),
        "used": len(used),
        "splits": {split: {name: by_split[split, name] for name in CLASSES} for split in SPLITS},
        "findings": {name: found[name] for name in FINDINGS},
    }


def require_trainable(manifest: pa.Table, stores: Sequence[str], num_ignored: int = 0) -> list[str]:
    """Refuse images that no classifier can be trained on.

    Returns:
        Warnings: sentences about contradictory labels and about classes that a split lacks.

    Raises:
        StoreError: there is no image, no label, a class is missing, or has one usable image only.
    """
    where = f"--store {' '.join(stores)}"
    if not len(manifest):
        raise StoreError(
            f"{where}: no image found, {num_ignored:,} other files; images are .jpg, .jpeg, .png, "
            ".bmp, .tif, .tiff, .webp in folders, tar or zip archives, Parquet or .npz"
        )
    labelled = manifest.filter(pc.is_valid(manifest["label"]))
    if not len(labelled):
        raise StoreError(
            f"{where}: none of its {len(manifest):,} images has a label; put images into folders "
            f"named after their class ({', '.join(CLASSES)}), or give Parquet a column label"
        )
    counts = count_manifest(manifest)
    totals = {name: sum(counts["splits"][split][name] for split in SPLITS) for name in CLASSES}
    missing = [name for name in CLASSES if not totals[name]]
    if missing:
        raise StoreError(
            f"{where}: no usable image of {_named(labelled, missing)}; every class needs at least "
            f"{LEAST_IMAGES} different images (docs/datasets.md says what sets one aside)"
        )
    rare = [name for name in CLASSES if totals[name] < LEAST_IMAGES]
    if rare:
        raise StoreError(
            f"{where}: only one usable image of {_named(labelled, rare)}; every class needs at "
            f"least {LEAST_IMAGES} different images, better hundreds"
        )
    untrained = [name for name in CLASSES if not counts["splits"]["train"][name]]
    if untrained:
        raise StoreError(
            f"{where}: no image of {', '.join(untrained)} is in the training split; add images of "
            "it, or give a split column or --splits that has some"
        )
    return list(_warnings(counts))


def _warnings(counts: Mapping[str, Any]) -> Iterator[str]:
    if conflicts := counts["findings"]["conflicting_label"]:
        yield (
            f"the same picture has two labels: images set aside for it: {conflicts:,} (the report "
            "shows them under conflicting label)"
        )
    for split in ("val", "test"):
        lacking = [name for name in CLASSES if not counts["splits"][split][name]]
        if lacking == list(CLASSES):
            yield f"no image is in the {split} split"
        elif lacking:
            yield f"no image of {', '.join(lacking)} is in the {split} split: too few of it"


def _named(labelled: pa.Table, names: Sequence[str]) -> str:
    """Name classes, each with why its images are not used."""
    return ", ".join(f"{name}{_why(labelled, name)}" for name in names)


def _why(labelled: pa.Table, name: str) -> str:
    rows = labelled.filter(pc.and_(pc.equal(labelled["label"], name), pc.invert(labelled["used"])))[
        "findings"
    ].to_pylist()
    if not rows:
        return ""
    reasons = Counter(found[0] if found else "in no split" for found in rows)
    return f" (set aside: {', '.join(f'{n:,} {why}' for why, n in reasons.most_common())})"
