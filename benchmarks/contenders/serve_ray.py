"""Ray Serve as its documentation has it: ``request.body()`` → Pillow → ``@serve.batch`` → JSON.

Source: https://docs.ray.io/en/latest/serve/tutorials/batch.html, the PyTorch tutorial (image in the
body, decoded by Pillow in ``__call__``) and advanced-guides/dyn-req-batch.html. ``--tuned`` is the
same code with what the documentation says of throughput: ``max_ongoing_requests`` that fill a batch
while another is worked on (the default is 5), and the high-throughput mode, which is HAProxy and
``RAY_SERVE_THROUGHPUT_OPTIMIZED`` (https://docs.ray.io/en/master/kuberay/user-guides/
serve-high-throughput.html); both variables come with the command.
"""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray import serve
from starlette.requests import Request

from benchmarks.contenders import NUM_CORES
from benchmarks.contenders.rival_model import RivalModel
from benchmarks.contenders.script import BATCH_SIZE


class CellClassifier:
    """The deployment of the recipe."""

    def __init__(self, bundle: str) -> None:
        self.model = RivalModel(bundle)

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Answer one request."""
        picture = self.model.decode(await request.body())
        answer: dict[str, Any] = await self.classify(picture)
        return answer

    @serve.batch(max_batch_size=BATCH_SIZE, batch_wait_timeout_s=0.01)
    async def classify(self, pictures: list[npt.NDArray[np.uint8]]) -> list[dict[str, Any]]:
        """Classify the pictures of requests that came together."""
        return self.model.classify(pictures)


def main() -> None:
    """Serve until terminated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--tuned", action="store_true")
    flags = parser.parse_args()
    ray.init(address="local", include_dashboard=False)  # never a cluster that happens to run here
    serve.start(http_options={"host": "127.0.0.1", "port": flags.port})
    options: dict[str, Any] = {"max_ongoing_requests": 2 * BATCH_SIZE} if flags.tuned else {}
    # A replica a core: each books one, and Ray gives its torch one thread.
    deployment = serve.deployment(num_replicas=NUM_CORES, **options)(CellClassifier)
    serve.run(deployment.bind(flags.bundle))
    print(f"listening on http://127.0.0.1:{flags.port}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # Ray's own ends without a word
    signal.pause()


if __name__ == "__main__":
    main()
