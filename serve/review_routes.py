"""The routes of review: slides, the queue of cells, their pictures, and what people say of them.

A review is written into the run's own folder, so that it lives as long as the run does. Knows
nothing of how a run came about or where its folder is.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from bloodcells import storage
from bloodcells.bundle import Calibration
from bloodcells.cells import CLASSES
from bloodcells.errors import NotFoundError, ReviewConflictError, RunError, StoreError
from bloodcells.parts import readable
from bloodcells.publish import published_shards
from bloodcells.records import SLIDES_SCHEMA
from bloodcells.reviewed_slides import corrected_slides
from bloodcells.reviews import (
    MAX_REVISION,
    Review,
    ReviewedCell,
    add_review,
)
from bloodcells.slides import SLIDES_NAME, slide_table
from serve.cells import RunCells
from serve.doors import Doors, Person
from serve.errors import ApiError
from serve.logs import log_failure
from serve.review_queue import ReviewQueue

MAX_LIMIT: Final = 200
MAX_OFFSET: Final = 100_000
MAX_SLIDES: Final = 1000
MAX_SLIDE_OFFSET: Final = 10_000_000
MAX_URI_CHARS: Final = 8192

Verdict = Literal[
    "basophil",
    "eosinophil",
    "erythroblast",
    "immature_granulocyte",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
    "not_a_cell",
]
"""As ``bloodcells.reviews.VERDICTS``."""

_URI_EXAMPLE: Final = "s3://lab/slide-17.tar#cell-0042.jpg"
_CELL_COLUMNS: Final = ("slide_id", "predicted_class", "bundle_digest", "shard_id")

RunId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="the archive run")]
ShardId = Annotated[
    str | None,
    Query(pattern=r"^[0-9a-f]{16}$", description="the cell's shard, which spares a search"),
]


class SlideView(BaseModel):
    """A slide as the machine has it, and as it stands with what people said."""

    slide_id: str = Field(examples=["slide-17"])
    machine: dict[str, Any] = Field(description="its row of slides.parquet")
    corrected: dict[str, Any] | None = Field(
        description="the same columns with reviewed cells counted as people called them; null "
        "where nobody reviewed a cell, or the run's bundle is not at hand"
    )
    num_reviewed: int = Field(examples=[12])


class SlidesView(BaseModel):
    """Slides, in the order of their ids."""

    total: int = Field(examples=[1])
    slides: list[SlideView]


class CellView(BaseModel):
    """A cell of the queue."""

    image_uri: str = Field(examples=[_URI_EXAMPLE])
    slide_id: str = Field(examples=["slide-17"])
    predicted_class: str = Field(examples=["neutrophil"])
    confidence: float = Field(examples=[0.61])
    probabilities: dict[str, float]
    out_of_domain: bool
    needs_review: bool
    revision: int = Field(examples=[0], description="0 where nobody has reviewed it")
    reviewed_class: str | None = Field(examples=[None])
    reviewed_by: str | None = Field(examples=[None])
    image_url: str = Field(examples=["/v1/archives/0f3a/image?uri=s3%3A%2F%2Flab%2F…"])


class QueueView(BaseModel):
    """A page of the queue."""

    total: int = Field(examples=[137])
    cells: list[CellView]


class NewReview(BaseModel):
    """What a person says of a cell."""

    model_config = ConfigDict(extra="forbid")
    image_uri: str = Field(min_length=1, max_length=MAX_URI_CHARS, examples=[_URI_EXAMPLE])
    verdict: Verdict = Field(alias="class", examples=["monocyte"])
    revision: int = Field(
        ge=0,
        lt=MAX_REVISION,
        strict=True,
        examples=[0],
        description="the revision that the person looked at",
    )


class ReviewView(BaseModel):
    """A review that stands in the run."""

    image_uri: str = Field(examples=[_URI_EXAMPLE])
    revision: int = Field(examples=[1])
    verdict: Verdict = Field(alias="class", examples=["monocyte"])
    before: Verdict = Field(examples=["neutrophil"])
    by: str = Field(examples=["anna"])
    at: str = Field(examples=["2026-03-01T09:30:00.000000+00:00"])


def review_router(
    find_run: Callable[[str], str],
    doors: Doors,
    calibration_of: Callable[[str], Calibration | None],
) -> APIRouter:
    """Return the routes of review.

    Args:
        find_run: from a run's id to its folder's URI; raises ``ApiError`` 404 where there is none.
        doors: who may come in.
        calibration_of: of the bundle that scored the run of this folder; ``None`` where it is not
            at hand, and then no corrected differential is shown.
    """
    router = APIRouter(prefix="/v1/archives/{id}", tags=["review"])
    cells, queue = RunCells(), ReviewQueue()
    reader = Depends(doors.require("review", "archives"))

    @router.get("/slides", summary="Slides, as the machine and as people have them")
    def slides(
        request: Request,
        id: RunId,
        person: Annotated[Person, reader],
        offset: Annotated[int, Query(ge=0, le=MAX_SLIDE_OFFSET)] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_SLIDES)] = MAX_SLIDES,
    ) -> SlidesView:
        """Return each slide's differential twice: the machine's, and with reviews counted in."""
        run_uri = find_run(id)
        with _told(request):
            calibration = calibration_of(run_uri)
            table = _machine_slides(run_uri, calibration)
            page = table.slice(offset, limit)
            shown = _slides_shown(run_uri, page, calibration, queue.reviews(run_uri))
        return SlidesView(total=len(table), slides=shown)

    @router.get("/review", summary="The cells that wait for a person")
    def review_queue(
        request: Request,
        id: RunId,
        person: Annotated[Person, reader],
        slide: Annotated[str | None, Query(max_length=MAX_URI_CHARS)] = None,
        offset: Annotated[int, Query(ge=0, le=MAX_OFFSET)] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 50,
        every: Annotated[bool, Query(alias="all", description="list every cell")] = False,
    ) -> QueueView:
        """Return a page of cells: not yet reviewed ones first, those of least confidence first."""
        run_uri = find_run(id)
        with _told(request):
            total, rows = queue.page(run_uri, slide=slide, offset=offset, limit=limit, every=every)
        return QueueView(total=total, cells=[_cell_view(id, row) for row in rows])

    @router.get(
        "/image",
        summary="A cell's picture",
        response_class=Response,
        responses={200: {"content": {"image/png": {}}, "description": "At most 360 px a side."}},
    )
    def image(
        request: Request,
        id: RunId,
        person: Annotated[Person, reader],
        uri: Annotated[str, Query(min_length=1, max_length=MAX_URI_CHARS, examples=[_URI_EXAMPLE])],
        shard: ShardId = None,
    ) -> Response:
        """Return a scored cell as a small PNG, decoded and drawn anew."""
        run_uri = find_run(id)
        with _told(request):
            picture = cells.picture(run_uri, uri, shard_id=shard)
        return Response(picture, media_type="image/png")

    @router.post("/reviews", status_code=201, summary="Confirm or correct a cell's class")
    def review(
        request: Request,
        id: RunId,
        given: NewReview,
        person: Annotated[Person, Depends(doors.require("review"))],
    ) -> ReviewView:
        """Add what you say of a cell.

        ``revision`` is the one that you looked at. Where somebody reviewed the cell since, the
        answer is 409 with the review that stands as ``current``.
        """
        run_uri = find_run(id)
        with _told(request):
            row = cells.score_row(run_uri, given.image_uri, _CELL_COLUMNS)
            try:
                added = add_review(
                    run_uri,
                    ReviewedCell(**row),
                    after=given.verdict,
                    reviewed_by=person.name,
                    revision_seen=given.revision,
                )
            except ReviewConflictError as error:
                raise _meanwhile(error) from error
        return _review_view(added)

    return router


@contextlib.contextmanager
def _told(request: Request) -> Iterator[None]:
    """Say that a run is damaged without naming the server's files; the log names them."""
    try:
        yield
    except (RunError, StoreError) as error:
        log_failure(request.state.request_id, error)
        raise ApiError(
            422,
            "run_damaged",
            "A file of this run cannot be read; the operator finds its name in the log, by the "
            "request's id.",
        ) from error


def _machine_slides(run_uri: str, calibration: Calibration | None) -> pa.Table:
    uri = storage.join(run_uri, SLIDES_NAME)
    try:
        with readable(uri):
            return pq.read_table(pa.BufferReader(storage.read(uri)), columns=SLIDES_SCHEMA.names)
    except NotFoundError as error:
        if calibration is not None:
            return slide_table(run_uri, calibration)
        raise ApiError(
            409, "no_slides_yet", "The table of slides is not written yet; wait for the run's end."
        ) from error


def _slides_shown(
    run_uri: str, page: pa.Table, calibration: Calibration | None, reviews: pa.Table
) -> list[SlideView]:
    on_page = pc.is_in(reviews["slide_id"], value_set=page["slide_id"].combine_chunks())
    published = pa.array(sorted(published_shards(run_uri)), pa.string())
    reviews = reviews.filter(pc.and_(on_page, pc.is_in(reviews["shard_id"], value_set=published)))
    counted = pc.value_counts(reviews["slide_id"]).to_pylist()
    num_reviewed = {entry["values"]: entry["counts"] for entry in counted}
    machine = page.to_pylist()
    if calibration is None or not num_reviewed:
        corrected = machine
    else:
        corrected = corrected_slides(run_uri, calibration, reviews, machine=page).to_pylist()
    return [
        SlideView(
            slide_id=was["slide_id"],
            machine=was,
            corrected=now if calibration is not None and was["slide_id"] in num_reviewed else None,
            num_reviewed=num_reviewed.get(was["slide_id"], 0),
        )
        for was, now in zip(machine, corrected, strict=True)
    ]


def _cell_view(run_id: str, row: dict[str, Any]) -> CellView:
    uri = quote(row["image_uri"], safe="")
    return CellView(
        **{name: row[name] for name in CellView.model_fields if name in row},
        probabilities={name: row[f"prob_{name}"] for name in CLASSES},
        image_url=f"/v1/archives/{run_id}/image?uri={uri}&shard={row['shard_id']}",
    )


def _review_view(review: Review) -> ReviewView:
    return ReviewView.model_validate(
        {
            "image_uri": review.image_uri,
            "revision": review.revision,
            "class": review.after,
            "before": review.before,
            "by": review.reviewed_by,
            "at": review.reviewed_at.isoformat(timespec="microseconds"),
        }
    )


def _meanwhile(error: ReviewConflictError) -> ApiError:
    current = (
        None if error.current is None else _review_view(error.current).model_dump(by_alias=True)
    )
    return ApiError(
        409,
        "reviewed_meanwhile",
        "Somebody reviewed this cell since you looked at it; look again, and review what stands "
        "now."
        if current
        else "Nobody has reviewed this cell yet; send revision 0.",
        extra={"current": current},
    )
