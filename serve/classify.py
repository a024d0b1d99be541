"""``POST /v1/classify`` and ``GET /v1/model``: cells in, classes out, in the order they came.

Knows nothing of archives.
"""

import time
from collections.abc import Mapping
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import JSONResponse

from bloodcells.bundle import ModelBundle
from bloodcells.cells import CLASSES
from bloodcells.errors import ImageError
from bloodcells.model_card import write_card
from bloodcells.scoring import Scorer
from bloodcells.sites import NONE, SiteProfile
from bloodcells.verdicts import Outputs, judge
from serve.batching import Answer, Batcher, QueueFullError, ScoredImage
from serve.bodies import Part, read_body, split_multipart
from serve.doors import Doors, Person
from serve.errors import ApiError
from serve.explaining import Explainer
from serve.metrics import Metrics
from serve.settings import Limits

_IMAGE_BODY: Final = {"schema": {"type": "string", "format": "binary"}}
_EXAMPLE: Final = {
    "bundle_digest": "sha256:65ba…",
    "site_digest": None,
    "precision": "float32",
    "images": [
        {
            "name": "cell-17.jpg",
            "content_hash": "9f86…",
            "predicted_class": "neutrophil",
            "confidence": 0.987,
            "probabilities": {name: 0.987 if name == "neutrophil" else 0.0019 for name in CLASSES},
            "out_of_domain": False,
            "needs_review": False,
            "width_px": 360,
            "height_px": 363,
        },
        {
            "name": "notes.txt",
            "error": {"code": "undecodable", "message": "is no JPEG, PNG, BMP, TIFF or WebP"},
        },
    ],
}
_DESCRIPTION: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": _IMAGE_BODY,
            "application/octet-stream": _IMAGE_BODY,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {"type": "array", "items": {"type": "string", "format": "binary"}}
                    },
                    "required": ["image"],
                }
            },
        },
    },
    "responses": {
        "200": {
            "description": "One entry an image, in order.",
            "content": {"application/json": {"example": _EXAMPLE}},
        }
    },
}


class Classifier:
    """What a replica needs to answer for single cells.

    Args:
        bundle: the model.
        batcher: scores images.
        explainer: draws overlays.
        limits: bounds of a request.
        metrics: counts what was answered.
        sites: the site profiles that a request may name.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        batcher: Batcher,
        explainer: Explainer,
        limits: Limits,
        metrics: Metrics,
        sites: Mapping[str, SiteProfile],
    ) -> None:
        self.bundle = bundle
        self.batcher = batcher
        self.explainer = explainer
        self.limits = limits
        self.metrics = metrics
        self.sites = sites
        self.scorers = {name: batcher.scorer.at(site) for name, site in sites.items()}

    async def answer(self, request: Request, *, explain: bool, site: str) -> JSONResponse:
        """Answer one request.

        Args:
            request: the request.
            explain: whether overlays are drawn.
            site: name of the site profile by which the images are seen, or ``none``.

        Raises:
            ApiError: the request as a whole is refused.
        """
        began = time.monotonic()
        scorer = self._scorer(site)
        self._require_room()
        body = await read_body(
            request, most_bytes=self.limits.request_bytes, seconds=self.limits.body_seconds
        )
        is_multipart = _media_type(request) == "multipart/form-data"
        if is_multipart:
            parts = await split_multipart(request, body, most_parts=self.limits.images_per_request)
        else:
            parts = [Part(name="", data=_require_image(request, body))]
        if explain and len(parts) > self.limits.explained_images:
            raise ApiError(
                413,
                "too_many_images",
                f"At most {self.limits.explained_images} images at a time get an overlay; send "
                "fewer, or leave out explain=true.",
            )
        answers = await self._score(parts, scorer)
        self.metrics.count(answers, time.monotonic() - began)
        if not is_multipart and isinstance(answers[0], ImageError):
            raise _refused(answers[0])
        images = self._described(parts, answers, scorer)
        if explain:
            await self._lay_over(images, answers, scorer.site)
        return JSONResponse(
            {
                "bundle_digest": self.bundle.digest,
                "site_digest": scorer.site.digest if scorer.site else None,
                "precision": scorer.precision,
                "images": images,
            }
        )

    def _scorer(self, site: str) -> Scorer:
        if site == NONE:
            return self.batcher.scorer
        scorer = self.scorers.get(site)
        if scorer is None:
            known = ", ".join([NONE, *sorted(self.sites)])
            raise ApiError(
                404, "unknown_site", f"There is no site profile {site[:64]!r}; there is: {known}."
            )
        return scorer

    def _require_room(self) -> None:
        try:
            self.batcher.require_room()
        except QueueFullError as error:
            raise _queue_full(error) from error

    async def _score(self, parts: list[Part], scorer: Scorer) -> list[Answer]:
        """Score the parts that are not too large; a fault stands in the place of any other."""
        most = self.limits.image_bytes
        small = [part.data for part in parts if len(part.data) <= most]
        try:
            scored = iter(await self.batcher.score(small, scorer))
        except QueueFullError as error:
            raise _queue_full(error) from error
        return [
            next(scored)
            if len(part.data) <= most
            else ImageError("too_large", f"it has more than {most:,} bytes")
            for part in parts
        ]

    def _described(
        self, parts: list[Part], answers: list[Answer], scorer: Scorer
    ) -> list[dict[str, Any]]:
        scored = [answer for answer in answers if isinstance(answer, ScoredImage)]
        stacked = np.array([image.logits for image in scored], np.float32)
        outputs = Outputs(
            logits=stacked.reshape(-1, len(CLASSES)),
            strangeness=np.array([image.strangeness for image in scored], np.float32),
            novelty=np.array([image.novelty for image in scored], np.float32),
        )
        verdicts = judge(outputs, self.bundle.calibration.at(scorer.site))
        rows = iter(zip(*verdicts, strict=True))
        return [
            _scored(part, answer, *next(rows))
            if isinstance(answer, ScoredImage)
            else {
                "name": part.name or None,
                "error": {"code": answer.reason, "message": answer.detail},
            }
            for part, answer in zip(parts, answers, strict=True)
        ]

    async def _lay_over(
        self, images: list[dict[str, Any]], answers: list[Answer], site: SiteProfile | None
    ) -> None:
        scored = [
            (image, answer)
            for image, answer in zip(images, answers, strict=True)
            if isinstance(answer, ScoredImage)
        ]
        if scored:
            pixels = np.stack([answer.picture.pixels for _, answer in scored])
            classes = np.array([CLASSES.index(image["predicted_class"]) for image, _ in scored])
            overlays = await self.explainer.overlays(pixels, classes.astype(np.int64), site)
            for (image, _), drawn in zip(scored, overlays, strict=True):
                image["overlay"] = drawn


def classify_router(classifier: Classifier, doors: Doors) -> APIRouter:
    """Return the routes for single cells."""
    router = APIRouter(prefix="/v1", tags=["single cells"])

    @router.post("/classify", openapi_extra=_DESCRIPTION, summary="Classify one cell, or many")
    async def classify(
        request: Request,
        person: Annotated[Person, Depends(doors.require("classify"))],
        explain: Annotated[bool, Query(description="add a Grad-CAM overlay to each image")] = False,
        site: Annotated[str, Query(description="name of a site profile")] = NONE,
    ) -> JSONResponse:
        """Send one image as the body, or many as files of ``multipart/form-data``.

        Each is answered in order, with its class and probabilities or an error of its own.
        """
        return await classifier.answer(request, explain=explain, site=site)

    @router.get("/model", summary="The model that answers")
    def model(person: Annotated[Person, Depends(doors.require())]) -> dict[str, Any]:
        """Return classes, digest, input size and the model card, in Markdown."""
        bundle = classifier.bundle
        return {
            "classes": list(bundle.classes),
            "bundle_digest": bundle.digest,
            "sites": {name: profile.digest for name, profile in classifier.sites.items()},
            "model_name": bundle.model_name,
            "preprocess": {"size": bundle.preprocess.size, "crop": bundle.preprocess.crop},
            "review_below": bundle.calibration.review_below,
            "card": write_card(bundle.manifest()),
        }

    return router


def _scored(
    part: Part,
    answer: ScoredImage,
    probabilities: npt.NDArray[np.float32],
    predicted: str,
    confidence: np.float32,
    out_of_domain: np.bool_,
    needs_review: np.bool_,
) -> dict[str, Any]:
    return {
        "name": part.name or None,
        "content_hash": answer.content_hash,
        "predicted_class": predicted,
        "confidence": float(confidence),
        "probabilities": dict(zip(CLASSES, map(float, probabilities), strict=True)),
        "out_of_domain": bool(out_of_domain),
        "needs_review": bool(needs_review),
        "width_px": answer.picture.width_px,
        "height_px": answer.picture.height_px,
    }


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _require_image(request: Request, body: bytes) -> bytes:
    """Refuse a body that says of itself that it is none; what it is, its first bytes say."""
    media_type = _media_type(request)
    if media_type.startswith("text/") or media_type in ("application/json", "application/xml"):
        raise ApiError(
            415,
            "unsupported_media_type",
            f"A body of type {media_type[:64]} is no image; send JPEG, PNG, BMP, TIFF or WebP, or "
            "many as multipart/form-data.",
        )
    if not body:
        raise ApiError(422, "no_images", "The body is empty; send an image.")
    return body


def _refused(fault: ImageError) -> ApiError:
    status = 413 if fault.reason == "too_large" else 422
    code = "image_too_large" if fault.reason == "too_large" else fault.reason
    return ApiError(status, code, f"The image cannot be scored: {fault.detail}.")


def _queue_full(error: QueueFullError) -> ApiError:
    return ApiError(
        503,
        "queue_full",
        f"Too many images wait already; try again in {error.retry_after_s} s.",
        headers={"Retry-After": str(error.retry_after_s)},
    )
