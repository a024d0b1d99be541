"""What travels: members and shards of a plan, records with their bytes, the tables we write.

Knows nothing of where bytes come from, of pixels, or of models.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bloodcells.cells import CLASSES

REASONS: Final[tuple[str, ...]] = (
    "undecodable",
    "too_large",
    "missing_object",
    "encrypted",
    "decoder_crashed",
)
"""The closed list of quarantine reasons: faults of the data, never of the surroundings."""

ShardKind = Literal["folder", "tar", "targz", "zip", "parquet", "npz"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One listed image: where it lies inside its source, and what is known without opening it.

    Attributes:
        image_uri: the image's unique key (``FILE_URI`` or ``SOURCE_URI#member``).
        name: file name, member name or row index inside the source, as stored.
        offset: first byte of the data inside the source (tar, zip: of its local header),
            row index in Parquet and npz, 0 for a file of its own.
        size: bytes to read from there, encoded (0 where unknown beforehand).
        tag: fingerprint of this listing entry beyond name, offset and size (etag or mtime of a
            file, header checksum in tar, CRC in zip); empty where the source has none.
        slide_id: the specimen's key.
        label: class name, or ``None`` where unknown.
    """

    image_uri: str
    name: str
    offset: int
    size: int
    tag: str
    slide_id: str
    label: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The unit of work, progress, retry, resume and output: about a thousand members of one source.

    Attributes:
        shard_id: 16 hex digits, derived from what is in the shard; see :meth:`make`.
        source_uri: the archive or table file, or the folder that was listed.
        kind: how to read it.
        members: the images in reading order.
    """

    shard_id: str
    source_uri: str
    kind: ShardKind
    members: tuple[Member, ...]

    @classmethod
    def make(cls, source_uri: str, kind: ShardKind, members: tuple[Member, ...]) -> Shard:
        """Build a shard whose id follows from its kind, its source's URI and its members."""
        digest = hashlib.sha256(f"{kind}\0{source_uri}\0".encode())
        listed = [f"{m.image_uri}\0{m.name}\0{m.offset}\0{m.size}\0{m.tag}\0" for m in members]
        digest.update("".join(listed).encode())
        return cls(
            shard_id=digest.hexdigest()[:16], source_uri=source_uri, kind=kind, members=members
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why an image cannot be scored: a reason of ``REASONS`` and a sentence for a person."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One image with its identity, as a store hands it out.

    Attributes:
        member: the listed image this is.
        data: encoded bytes; decoded pixels ``uint8 (H, W, 3)`` or ``(H, W)`` for ``.npz``; or the
            fault that kept them from being read.
    """

    member: Member
    data: bytes | npt.NDArray[np.generic] | Fault


MEMBER_TYPE: Final = pa.struct(
    [
        pa.field("image_uri", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("tag", pa.string(), nullable=False),
        pa.field("slide_id", pa.string(), nullable=False),
        pa.field("label", pa.string()),
    ]
)

PLAN_SCHEMA: Final = pa.schema(
    [
        pa.field("shard_id", pa.string(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("num_images", pa.int64(), nullable=False),
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("members", pa.list_(MEMBER_TYPE), nullable=False),
    ]
)
"""``plan/*.parquet``: one row a shard, one row group a row."""

SCORES_SCHEMA: Final = pa.schema(
    [
        pa.field("image_uri", pa.string(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("slide_id", pa.string(), nullable=False),
        pa.field("predicted_class", pa.string(), nullable=False),
        pa.field("confidence", pa.float32(), nullable=False),
        *(pa.field(f"prob_{name}", pa.float32(), nullable=False) for name in CLASSES),
        pa.field("out_of_domain", pa.bool_(), nullable=False),
        pa.field("needs_review", pa.bool_(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("width_px", pa.int32(), nullable=False),
        pa.field("height_px", pa.int32(), nullable=False),
        pa.field("shard_id", pa.string(), nullable=False),
        pa.field("bundle_digest", pa.string(), nullable=False),
        pa.field("site_digest", pa.string()),
        pa.field("precision", pa.string(), nullable=False),
    ]
)
"""``scores/part-<shard>.parquet``: one row an image, in the shard's member order."""

QUARANTINE_SCHEMA: Final = pa.schema(
    [
        pa.field("image_uri", pa.string(), nullable=False),
        pa.field("content_hash", pa.string()),
        pa.field("slide_id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("shard_id", pa.string(), nullable=False),
    ]
)
"""``quarantine/part-<shard>.parquet``: one row an image that has no score."""

SLIDES_SCHEMA: Final = pa.schema(
    [
        pa.field("slide_id", pa.string(), nullable=False),
        pa.field("num_images", pa.int64(), nullable=False),
        pa.field("num_scored", pa.int64(), nullable=False),
        pa.field("num_quarantined", pa.int64(), nullable=False),
        pa.field("num_out_of_domain", pa.int64(), nullable=False),
        pa.field("num_review", pa.int64(), nullable=False),
        *(pa.field(f"count_{name}", pa.int64(), nullable=False) for name in CLASSES),
        *(pa.field(f"percent_{name}", pa.float64()) for name in CLASSES),
        *(pa.field(f"estimate_{name}", pa.float64()) for name in CLASSES),
        *(pa.field(f"low_{name}", pa.float64()) for name in CLASSES),
        *(pa.field(f"high_{name}", pa.float64()) for name in CLASSES),
        pa.field("erythroblasts_per_100_wbc", pa.float64()),
        pa.field("mean_confidence", pa.float64()),
    ]
)
"""``slides.parquet``: one row a slide.

``percent_``, ``estimate_``, ``low_`` and ``high_`` are per cent of the white cells for the six
white classes, and a number per 100 white cells (which may exceed 100) for erythroblast and
platelet. They are null where a slide has no white cell.
"""

REVIEWS_SCHEMA: Final = pa.schema(
    [
        pa.field("image_uri", pa.string(), nullable=False),
        pa.field("slide_id", pa.string(), nullable=False),
        pa.field("revision", pa.int32(), nullable=False),
        pa.field("before", pa.string(), nullable=False),
        pa.field("after", pa.string(), nullable=False),
        pa.field("reviewed_by", pa.string(), nullable=False),
        pa.field("reviewed_at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("bundle_digest", pa.string(), nullable=False),
        pa.field("shard_id", pa.string(), nullable=False),
    ]
)
"""``reviews/<cell>-<revision>.parquet``: one row, what a person called a cell.

``before`` and ``after`` are a class or ``not_a_cell``.
"""

FINDINGS: Final[tuple[str, ...]] = (
    "undecodable",
    "unlabelled",
    "conflicting_label",
    "exact_duplicate",
    "near_duplicate",
    "blank",
    "blurred",
    "alien",
)
"""The closed list of what may speak against training on an image."""

MANIFEST_SCHEMA: Final = pa.schema(
    [
        pa.field("image_uri", pa.string(), nullable=False),
        pa.field("content_hash", pa.string()),
        pa.field("slide_id", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),
        pa.field("used", pa.bool_(), nullable=False),
        pa.field("findings", pa.list_(pa.string()), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("duplicate_of", pa.string()),
        pa.field("width_px", pa.int32()),
        pa.field("height_px", pa.int32()),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("tag", pa.string(), nullable=False),
    ]
)
"""``manifest.parquet`` of a dataset: one row an image, ordered by ``image_uri``.

``split`` is ``train``, ``val`` or ``test``; null where the store's own split column says another
word, and where there is no label. Images of one ``group`` are never in two splits. ``used`` is
false where a finding speaks against the image; ``duplicate_of`` then names the one that stands for
it. The last six columns say where the image lies (see :class:`Member`).
"""
