"""Archive runs as clients see them: the JSON of requests and answers, with examples.

Knows nothing of storage or of Ray.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bloodcells.sites import AUTO
from serve.archive_records import ArchiveRequest, Note, Status
from serve.archive_words import for_client

_ID = "3f2b8c0e9a5d4c718e6f0a1b2c3d4e5f"
_EXAMPLE: dict[str, Any] = {
    "id": _ID,
    "status": "running",
    "store": ["s3://lab/slides/2026-11"],
    "out": None,
    "created": "2026-11-25T08:00:00.000000+00:00",
    "created_by": "ann",
    "message": None,
    "counts": {
        "listed": 20000,
        "scored": 5120,
        "quarantined": 3,
        "shards": 79,
        "shards_done": 20,
    },
    "images_per_second": 412.5,
    "seconds_left": 36.1,
    "bundle_digest": "sha256:4f1c…",
    "site_digest": "sha256:90ab…",
    "site": {
        "standing": "home",
        "distance": 0.4,
        "threshold": 1.2,
        "sentence": "These pictures look like those the model learned from (distance 0.4 where 1.2 "
        "is the limit).",
    },
    "problems": [],
}

Uri = Annotated[str, Field(min_length=1, max_length=1024)]


class ArchiveAsked(BaseModel):
    """What to score, and where to."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"store": "s3://lab/slides/2026-11"}]},
    )
    store: Uri | Annotated[list[Uri], Field(min_length=1, max_length=100)] = Field(
        description="Folder, archive or table of images: an absolute path or s3:// URI, or several."
    )
    out: Uri | None = Field(
        default=None, description="Where the run folder is to be; by default the endpoint keeps it."
    )
    slide_pattern: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        default=None,
        description="Regular expression that finds the slide in an image's URI; by default the "
        "archive's name, or the folder's.",
    )
    shard_size: int = Field(default=256, ge=1, le=10_000, description="Most images in a shard.")
    site: Annotated[str, Field(min_length=1, max_length=64)] = Field(
        default=AUTO,
        description="'auto' compares the archive with the model's own lab and adapts to another, "
        "'none' does not, and any other name is that of a site profile of the endpoint.",
    )
    max_quarantine: float = Field(
        default=0.2, ge=0, le=1, description="Share of unreadable images that stops the run."
    )


class Counts(BaseModel):
    """Images and shards of a run."""

    listed: int = 0
    scored: int = 0
    quarantined: int = 0
    shards: int = 0
    shards_done: int = 0


class Problem(BaseModel):
    """A source that could not be listed in full."""

    uri: str
    detail: str


class Origin(BaseModel):
    """Where an archive's pictures come from, as far as they tell."""

    standing: Literal["home", "elsewhere", "unknown"]
    distance: float | None
    threshold: float | None
    sentence: str


class ArchiveView(BaseModel):
    """An archive run."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})
    id: str
    status: Literal[
        "queued", "planning", "running", "incomplete", "cancelled", "failed", "complete"
    ]
    store: list[str]
    out: str | None
    created: str
    created_by: str
    message: str | None
    counts: Counts
    images_per_second: float | None
    seconds_left: float | None
    bundle_digest: str | None
    site_digest: str | None
    site: Origin | None
    problems: list[Problem]


class ArchiveList(BaseModel):
    """Archive runs, newest first."""

    archives: list[ArchiveView]


class ArchiveDetail(ArchiveView):
    """An archive run with its slides so far.

    ``slides`` holds rows of ``slides.parquet``, at most 1,000.
    """

    slides: list[dict[str, Any]]
    num_slides: int


class ArchiveFile(BaseModel):
    """A file of a run folder."""

    name: str = Field(examples=["slides.parquet"])
    bytes: int
    url: str = Field(examples=[f"/v1/archives/{_ID}/files/slides.parquet"])


class ArchiveFiles(BaseModel):
    """The files of a run folder."""

    files: list[ArchiveFile]


def view_of(request: ArchiveRequest, note: Note | None, root_uri: str) -> ArchiveView:
    """Return a run as its request and its keeper's note have it."""
    known = note or Note(status="queued", asked=request.asked)
    status = status_of(request, note)
    is_going_on = status == "running"
    is_current = note is not None and note.asked >= request.asked
    return ArchiveView(
        id=request.id,
        status=status,
        store=[for_client(uri, root_uri) for uri in request.shown],
        out=request.out if request.out_given else None,
        created=request.created,
        created_by=request.created_by,
        message=known.message if is_current and status == known.status else None,
        counts=Counts(**known.counts),
        images_per_second=known.images_per_second if is_going_on or status == "complete" else None,
        seconds_left=known.seconds_left if is_going_on else None,
        bundle_digest=known.bundle_digest,
        site_digest=known.site["digest"] if known.site else None,
        site=Origin(**{name: known.site[name] for name in Origin.model_fields})
        if known.site
        else None,
        problems=[Problem(**problem) for problem in known.problems],
    )


def status_of(request: ArchiveRequest, note: Note | None) -> Status:
    """Return how a run stands."""
    if note is not None and note.status == "complete":
        return "complete"
    is_current = note is not None and note.asked >= request.asked
    if note is not None and is_current and note.status == "failed":
        return "failed"
    if request.wanted == "cancelled":
        return "cancelled"
    if note is None or not is_current or note.status == "cancelled":
        return "queued"
    return note.status
