"""From a shard to its published scores: load, score, publish. The one engine.

Bulk runs and the endpoint's archive replicas call the same three steps: ``loading.load_shard``
(bytes to pixels, on any CPU), :class:`Scorer` (pixels to calibrated probabilities, on the
accelerator) and ``verdicts.publish_scored``. Knows nothing of Ray.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from bloodcells.bundle import ModelBundle
from bloodcells.cells import CLASSES
from bloodcells.detector import InspectingClassifier
from bloodcells.errors import ConfigurationError
from bloodcells.fusion import fuse_convolutions
from bloodcells.imaging import Preprocess
from bloodcells.loading import LoadedShard, load_shard
from bloodcells.models import for_inference
from bloodcells.precision import MICRO_BATCH, PRECISIONS, precision_on
from bloodcells.publish import ShardOutcome
from bloodcells.records import Shard
from bloodcells.runs import require_ownership
from bloodcells.sites import SiteProfile, network_at
from bloodcells.verdicts import Outputs, judge, publish_scored, score_table


class Scorer:
    """A bundle made ready on a device, for one lab: batches of pixels in, probabilities out.

    Args:
        bundle: the model as shipped.
        site: the lab whose pictures it sees; ``None`` for the bundle's own.
        device: ``"cpu"`` or ``"cuda"``; by default a GPU where torch sees one.
        precision: ``float32`` or ``bfloat16`` (autocast); by default what suits the device.
        num_threads: CPU threads of one forward pass; ``None`` leaves torch's own choice.
        compile_model: compile the model with ``torch.compile`` (tens of seconds, once).
        micro_batch: most images in a forward pass; by default what suits the device.
        padded_sizes: sizes below ``micro_batch`` that a batch may be padded to instead. Bulk
            scoring has none: each pass has one size there, so that a shard scored twice is equal to
            the bit.

    Raises:
        ConfigurationError: the device is not there, or the precision is unknown.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        *,
        site: SiteProfile | None = None,
        device: str | None = None,
        precision: str | None = None,
        num_threads: int | None = None,
        compile_model: bool = False,
        micro_batch: int | None = None,
        padded_sizes: Sequence[int] = (),
    ) -> None:
        self.device = device or default_device()
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigurationError("device 'cuda': torch sees no GPU here; use device 'cpu'")
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self.bundle, self.site = bundle, site
        self.precision = precision or precision_on(self.device)
        if self.precision not in PRECISIONS:
            raise ConfigurationError(f"precision {precision!r}: use {' or '.join(PRECISIONS)}")
        self.micro_batch = micro_batch or MICRO_BATCH[self.device]
        self._sizes = sorted({size for size in padded_sizes if size < self.micro_batch})
        self._sizes.append(self.micro_batch)
        self._compiles = compile_model
        self._forward = self._network()

    def at(self, site: SiteProfile | None) -> Scorer:
        """Return a scorer like this one for another lab, with this one's network if it is the same.

        Raises:
            BundleError: the site's profile does not fit the bundle.
        """
        other = copy.copy(self)
        other.site = site
        if network_at(site) != network_at(self.site):
            other._forward = other._network()
        return other

    @property
    def seen(self) -> Preprocess:
        """How pictures become what this scorer takes."""
        preprocess = self.bundle.preprocess
        return self.site.seen_by(preprocess) if self.site else preprocess

    def warm_up(self) -> None:
        """Run a batch of each size through the model, so that compilation is done beforehand."""
        side = self.bundle.preprocess.size
        for num_images in self._sizes:
            self.outputs(np.zeros((num_images, side, side, 3), np.uint8))

    def outputs(self, pixels: npt.NDArray[np.uint8]) -> Outputs:
        """Score pictures in micro-batches of one fixed, padded size.

        Args:
            pixels: ``uint8 (N, S, S, 3)``, RGB, of the bundle's ``preprocess.size``.

        Returns:
            The logits, the strangeness and the novelty of each.
        """
        num = len(CLASSES)
        columns = np.empty((len(pixels), num + 2), np.float32)
        for start in range(0, len(pixels), self.micro_batch):
            batch = pixels[start : start + self.micro_batch]
            columns[start : start + len(batch)] = self._columns(batch)
        return Outputs(
            logits=columns[:, :num], strangeness=columns[:, num], novelty=columns[:, num + 1]
        )

    def probabilities(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the calibrated probabilities, ``float32 (N, 8)``."""
        calibration = self.bundle.calibration.at(self.site)
        return judge(self.outputs(pixels), calibration).probabilities

    def _network(self) -> Callable[[torch.Tensor], torch.Tensor]:
        model = for_inference(self.bundle.build(self.site)).to(self.device)
        if self.device == "cpu" and self.precision == "float32" and not self._compiles:
            size = self.bundle.preprocess.size
            model = fuse_convolutions(model, (self.micro_batch, size, size, 3))
        detector = self.bundle.at(self.site).detector
        inspecting = InspectingClassifier(model, detector).to(self.device)
        if not self._compiles:
            return inspecting
        # Seen on an H200: the compiler advises a coarser float32, which would be other figures.
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
        forward: Callable[[torch.Tensor], torch.Tensor] = torch.compile(inspecting)
        return forward

    def _columns(self, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        size = next(size for size in self._sizes if size >= len(batch))
        padded = np.zeros((size, *batch.shape[1:]), np.uint8)
        padded[: len(batch)] = batch
        with (
            torch.inference_mode(),
            torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16"),
        ):
            columns = self._forward(torch.from_numpy(padded).to(self.device))
        return columns.float().cpu().numpy()[: len(batch)]


def default_device() -> str:
    """Return ``"cuda"`` where torch sees a GPU, else ``"cpu"``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def score_loaded(loaded: LoadedShard, scorer: Scorer) -> pa.Table:
    """Score a loaded shard; returns its rows in ``SCORES_SCHEMA``.

    Args:
        loaded: the shard, as the scorer's site has it seen.
        scorer: the model.
    """
    site = scorer.site
    return score_table(
        loaded,
        scorer.outputs(loaded.pixels),
        scorer.bundle.calibration.at(site),
        bundle_digest=scorer.bundle.digest,
        site_digest=site.digest if site else None,
        precision=scorer.precision,
    )


def score_shard(
    shard: Shard,
    scorer: Scorer,
    run_uri: str,
    *,
    run_id: str | None = None,
    attempt: int = 1,
    turn: AbstractContextManager[object] | None = None,
) -> ShardOutcome:
    """Read, decode, score and publish one shard.

    Args:
        shard: the shard, with its members.
        scorer: the model.
        run_uri: the run folder.
        run_id: the run that must own the folder when the shard is published; ``None`` asks nothing.
        attempt: see :func:`bloodcells.loading.load_shard`.
        turn: held while the scorer works, by threads that share one: a shard is decoded while
            another is scored.

    Raises:
        StorageError: the store or the run folder cannot be reached; nothing was published.
        RunSupersededError: the folder is another run's by now; nothing was published.
    """
    loaded = load_shard(shard, scorer.seen, attempt=attempt)
    with turn or nullcontext():
        scores = score_loaded(loaded, scorer)
    if run_id is not None:
        require_ownership(run_uri, run_id)
    return publish_scored(loaded, scores, run_uri)
