"""LitServe as its documentation has it: ``setup`` → ``decode_request`` → ``batch`` → ``predict``.

Source: https://lightning.ai/docs/litserve/features/batching and speed-up-serving-by-200x. The image
is the request's body, where its documentation sends base64 in JSON or a form, both of which cost
more. ``--fast-queue`` is what it advises above 100 requests a second.
"""

# No "from __future__ import annotations": LitServe reads the annotation of ``request``.
import argparse
from collections.abc import Sequence
from typing import Annotated, Any

import litserve as ls
import numpy as np
import numpy.typing as npt
import torch
from fastapi import Body

from benchmarks.contenders import NUM_CORES
from benchmarks.contenders.rival_model import RivalModel
from benchmarks.contenders.script import BATCH_SIZE

Picture = npt.NDArray[np.uint8]


class CellClassifier(ls.LitAPI):  # type: ignore[misc]
    """The API of the recipe.

    Args:
        bundle: folder of the model bundle.
        batch_timeout: seconds to wait for a batch to fill.
    """

    def __init__(self, bundle: str, *, batch_timeout: float) -> None:
        super().__init__(max_batch_size=BATCH_SIZE, batch_timeout=batch_timeout)
        self.bundle = bundle

    def setup(self, device: str) -> None:
        """Load the model, once a worker."""
        torch.set_num_threads(1)  # a worker a core
        self.model = RivalModel(self.bundle)

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/jpeg")]) -> Picture:
        """Decode one image."""
        return self.model.decode(request)

    def batch(self, inputs: list[Picture]) -> list[Picture]:
        """Leave stacking to the model."""
        return inputs

    def predict(self, x: Sequence[Picture]) -> list[dict[str, Any]]:
        """Classify a batch."""
        return self.model.classify(x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return one answer a request."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Answer."""
        return output


def main() -> None:
    """Serve until terminated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--batch-timeout", type=float, default=0.01)
    parser.add_argument("--fast-queue", action="store_true")
    flags = parser.parse_args()
    server = ls.LitServer(
        CellClassifier(flags.bundle, batch_timeout=flags.batch_timeout),
        accelerator="cpu",
        workers_per_device=NUM_CORES,
        fast_queue=flags.fast_queue,
    )
    server.run(host="127.0.0.1", port=flags.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
