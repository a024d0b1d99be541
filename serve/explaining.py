"""Grad-CAM overlays for the endpoint, one at a time, in a thread of their own.

The model for them is built when the first of a site is asked for. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import base64
import io
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from bloodcells.bundle import ModelBundle
from bloodcells.sites import SiteProfile, network_at
from serve.errors import ApiError

if TYPE_CHECKING:
    from bloodcells.models import Classifier


class Explainer:
    """Draws which parts of an image spoke for its class.

    Args:
        bundle: the model.
        most_waiting: images that may wait; beyond it there is a 503.
    """

    def __init__(self, bundle: ModelBundle, *, most_waiting: int) -> None:
        self._bundle = bundle
        self._most_waiting = most_waiting
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="explain")
        self._models: dict[tuple[str, str | None], Classifier] = {}

    async def overlays(
        self,
        pixels: npt.NDArray[np.uint8],
        classes: npt.NDArray[np.int64],
        site: SiteProfile | None = None,
    ) -> list[str]:
        """Return each image under its heat map, as a PNG in a ``data:`` URI.

        Args:
            pixels: ``uint8 (N, S, S, 3)``, RGB, as the model sees them.
            classes: the class to speak for, ``int64 (N,)``.
            site: the lab they are from; ``None`` for the bundle's own.

        Raises:
            ApiError: 503, too many wait; 422, the model has no heat maps.
        """
        if self._waiting and self._waiting + len(pixels) > self._most_waiting:
            raise ApiError(
                503,
                "queue_full",
                "Too many overlays are being drawn; try again.",
                headers={"Retry-After": str(max(1, self._waiting // 8))},
            )
        self._waiting += len(pixels)
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, self._draw, pixels, classes, site
            )
        finally:
            self._waiting -= len(pixels)

    def _draw(
        self,
        pixels: npt.NDArray[np.uint8],
        classes: npt.NDArray[np.int64],
        site: SiteProfile | None,
    ) -> list[str]:
        from bloodcells.explain import grad_cam, overlay  # takes seconds to import

        key = network_at(site)
        if key not in self._models:
            self._models[key] = self._bundle.build(site)
        heat = grad_cam(self._models[key], pixels, classes)
        return [_data_uri(image) for image in overlay(pixels, heat)]


def _data_uri(pixels: npt.NDArray[np.uint8]) -> str:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return f"data:image/png;base64,{base64.b64encode(sink.getvalue()).decode()}"
