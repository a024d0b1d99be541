"""A bundle's network fitted to a few labelled cells: a new dense layer, then steps of all of it.

First its early layers take the lab's pictures for the usual. Then the dense layer is fitted on
features of many views of each cell, and held near the bundle's own; the whole network is then moved
a little with it. Source: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and
Underperform Out-of-Distribution", arXiv:2202.10054 (the dense layer first). Knows nothing of folds,
figures or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional

from bloodcells.augment import Augmentation, augment, image_keys, mix, toned
from bloodcells.augment.geometry import MARGIN
from bloodcells.bundle import ModelBundle, shipping_precision
from bloodcells.cells import CLASSES
from bloodcells.detector import FeatureTap
from bloodcells.errors import BundleError, ConfigurationError, ImageError
from bloodcells.imaging import Preprocess, decode_batch
from bloodcells.imaging.window import LARGEST_CROP
from bloodcells.models import Classifier, for_inference
from bloodcells.models.classifier import dense_layers
from bloodcells.models.early_norm import set_statistics, statistics_at
from bloodcells.training.averaging import moving_norms

Encoded = bytes | npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]

MILD: Final = Augmentation(
    zoom=1.2,
    shift=0.05,
    stain=0.06,
    lamp=0.05,
    density=0.15,
    colour=0.0,
    shade=0.15,
    blur=0.7,
    sharpen=0.5,
    noise=4.0,
    mixup=0.4,
    strangers=0.0,
)
"""One lab's own variation: its lamp and stain are in the pictures already. What MixUp gives is in
docs/adapting.md."""

_FIRST_VIEW: Final = 1_000_000
"""Views of the dense layer are numbered from here, those of the steps from 0."""

_BATCH: Final = 32

_MOST_SETTLED: Final = 120
"""Cells that early layers are settled among, as many as a profile's: all of 480 took 2 GB."""


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """How a network is fitted to a few cells.

    Attributes:
        views: varied ones of each cell, that the dense layer is fitted on beside the plain ones.
        hold: weight of the squared distance from the bundle's own dense layer, against the mean
            cross-entropy of the views.
        steps: of the whole network after that, on views that are mixed as ``augmentation`` says; 0
            moves the dense layer only (docs/adapting.md: with steps two labs fared 0.08 and 0.28
            better).
        batch_size: views a step, as many of each class.
        learning_rate: the highest, of AdamW; it rises over a fifth of the steps and falls to 0.
        label_smoothing: share of the target spread over all classes.
        augmentation: how views differ.
        seed: of what is drawn.
    """

    views: int = 4
    hold: float = 0.03
    steps: int = 160
    batch_size: int = 16
    learning_rate: float = 1e-3
    label_smoothing: float = 0.1
    augmentation: Augmentation = field(default_factory=lambda: MILD)
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, low in (("views", 0), ("steps", 0), ("batch_size", 2), ("seed", 0)):
            if getattr(self, name) < low:
                raise ConfigurationError(f"{name} must be {low} or more, not {getattr(self, name)}")
        if not self.hold > 0 or not 0 < self.learning_rate < 1:
            raise ConfigurationError(
                f"hold must be above 0 and learning_rate between 0 and 1, not {self.hold} and "
                f"{self.learning_rate}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        return asdict(self) | {"augmentation": self.augmentation.to_dict()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """Labelled cells, decoded.

    Attributes:
        preprocess: how the model sees them.
        pixels: as it scores them, ``uint8 (N, S, S, 3)``.
        fields: with a margin and in their own colours, at the same scale, ``uint8 (N, M, M, 3)``.
        labels: index into ``CLASSES``, ``int64 (N,)``.
    """

    preprocess: Preprocess
    pixels: Pixels
    fields: Pixels
    labels: IntArray

    @classmethod
    def decoded(cls, images: Sequence[Encoded], labels: IntArray, preprocess: Preprocess) -> Cells:
        """Decode cells.

        Raises:
            ImageError: one of them cannot be decoded.
        """
        crop = min(LARGEST_CROP, preprocess.crop * MARGIN)
        wide = Preprocess(size=round(preprocess.size * crop / preprocess.crop), crop=crop)
        return cls(
            preprocess=preprocess,
            pixels=all_decoded(images, preprocess),
            fields=all_decoded(images, wide),
            labels=labels,
        )

    def take(self, rows: IntArray) -> Cells:
        """Return some of them."""
        return Cells(
            preprocess=self.preprocess,
            pixels=self.pixels[rows],
            fields=self.fields[rows],
            labels=self.labels[rows],
        )

    def views(self, rows: IntArray, number: int, fitting: Fitting) -> Tensor:
        """Draw one changed view of some cells, ``uint8 (len(rows), S, S, 3)``."""
        keys = image_keys(
            fitting.seed, number, rows.astype(np.uint64), np.zeros(len(rows), np.int64)
        )
        fields = torch.from_numpy(self.fields[rows])
        views = augment(fields, self.preprocess.size, fitting.augmentation, keys)
        return toned(views, self.preprocess.tone, fitting.augmentation, keys)


def settled(bundle: ModelBundle, pixels: Pixels) -> Classifier:
    """Return a bundle's classifier with early layers that take some pictures for the usual.

    Args:
        bundle: the given one.
        pixels: a lab's cells of several classes, ``uint8 (N, S, S, 3)``; of many, as many as
            ``_MOST_SETTLED`` are used, evenly from the first to the last.
    """
    model = bundle.build().eval()
    few = pixels[np.linspace(0, len(pixels) - 1, min(len(pixels), _MOST_SETTLED)).astype(int)]
    set_statistics(model, statistics_at(model, torch.from_numpy(few), 1.0))
    return model


def fit_network(bundle: ModelBundle, cells: Cells, fitting: Fitting) -> ModelBundle:
    """Return the bundle with weights fitted to the cells, as shipped; all else is as it was.

    Args:
        bundle: to begin with.
        cells: N of them, all of which are learned from.
        fitting: how.

    Raises:
        BundleError: its model has not one dense layer.
    """
    model = settled(bundle, cells.pixels)
    dense = only_dense_layer(model)
    features, rows = view_features(model, cells, fitting)
    with torch.no_grad():
        weight, bias = fit_dense(features, cells.labels[rows], dense, fitting.hold)
        dense.weight.copy_(weight)
        dense.bias.copy_(bias)
    if fitting.steps:
        _move(model, cells, fitting)
    return ModelBundle(
        model_name=bundle.model_name,
        preprocess=cells.preprocess,
        calibration=bundle.calibration,
        state_dict=shipping_precision(model.state_dict()),
        facts=bundle.facts,
        home=bundle.home,
        detector=bundle.detector,
    )


def view_features(model: Classifier, cells: Cells, fitting: Fitting) -> tuple[Floats, IntArray]:
    """Return features of views of every cell, and the cell that each is of.

    Every cell is seen as it is scored, turned by quarters and mirrored, and in ``fitting.views``
    varied views. Without the former, whose pixels are not resampled, balanced accuracy on BCCD was
    0.03 lower.

    Returns:
        ``float32 (N * (8 + V), D)`` and ``int64 (N * (8 + V),)``.
    """
    everything = np.arange(len(cells.labels))
    plain = [np.rot90(cells.pixels, n, (1, 2)) for n in range(4)]
    shown = [*plain, *(pixels[:, :, ::-1] for pixels in plain)]
    shown += [
        cells.views(everything, _FIRST_VIEW + n, fitting).numpy() for n in range(fitting.views)
    ]
    features, _ = seen_by(model, np.concatenate(shown))
    return features, np.tile(everything, len(shown))


def seen_by(model: Classifier, pixels: Pixels) -> tuple[Floats, Floats]:
    """Return what the dense layer is given ``float32 (N, D)``, and logits ``(N, 8)``."""
    fast = for_inference(model)
    tap = FeatureTap(fast)
    features, logits = [], []
    with torch.inference_mode():
        for start in range(0, len(pixels), _BATCH):
            batch = np.ascontiguousarray(pixels[start : start + _BATCH])
            logits.append(fast(torch.from_numpy(batch)).numpy())
            features.append(tap.last.numpy().copy())
    return np.concatenate(features), np.concatenate(logits)


def class_weights(labels: IntArray) -> Doubles:
    """Return weights of sum 1 that make every class count alike, ``float64 (N,)``."""
    counts = np.bincount(labels, minlength=len(CLASSES))
    weights = 1 / counts[labels].astype(np.float64)
    return np.asarray(weights / weights.sum())


def only_dense_layer(model: Classifier) -> nn.Linear:
    """Return the dense layer behind the features.

    Raises:
        BundleError: there is another number of them.
    """
    layers = dense_layers(model.backbone)
    if len(layers) != 1 or not isinstance(layers[0], nn.Linear):
        raise BundleError(
            "this bundle's model has not one dense layer behind its features and cannot be adapted;"
            " use one of the models that docs/training.md names"
        )
    return layers[0]


def fit_dense(
    features: Floats, labels: IntArray, dense: nn.Linear, hold: float
) -> tuple[Tensor, Tensor]:
    """Fit a dense layer by logistic regression, held near the one that is there.

    The change lies in the span of the features, so it is sought there: hundreds of numbers, not
    ten thousand. Classes of which there is no cell stay, and lose only in their bias.

    Args:
        features: ``float32 (N, D)``.
        labels: ``int64 (N,)``.
        dense: the bundle's, of D inputs and 8 outputs.
        hold: weight of the squared change of the weights; the biases are free.

    Returns:
        Weights ``float32 (8, D)`` and biases ``float32 (8,)``.
    """
    wide = features.astype(np.float64)
    _, singular, axes = np.linalg.svd(wide, full_matrices=False)
    axes = axes[singular > 1e-6 * max(singular[0], 1e-12)]
    placed = np.column_stack([wide @ axes.T, np.ones(len(wide))])
    weight, bias = (part.detach().double().numpy() for part in (dense.weight, dense.bias))
    before = wide @ weight.T + bias
    targets = np.eye(len(CLASSES))[labels]
    share = class_weights(labels)[:, None]

    def loss(flat: Doubles) -> tuple[float, Doubles]:
        change = flat.reshape(placed.shape[1], len(CLASSES))
        logits = before + placed @ change
        logits -= logits.max(1, keepdims=True)
        total = np.exp(logits).sum(1, keepdims=True)
        away = (np.exp(logits) / total - targets) * share
        slope = placed.T @ away
        slope[:-1] += 2 * hold * change[:-1]
        entropy = float((share * targets * (np.log(total) - logits)).sum())
        return entropy + hold * float((change[:-1] ** 2).sum()), slope.ravel()

    start = np.zeros(placed.shape[1] * len(CLASSES))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200})
    change = found.x.reshape(placed.shape[1], len(CLASSES))
    return (
        torch.from_numpy(weight + (axes.T @ change[:-1]).T).float(),
        torch.from_numpy(bias + change[-1]).float(),
    )


def _move(model: Classifier, cells: Cells, fitting: Fitting) -> None:
    """Train the whole network for some steps; it ends as the mean of the second half of them.

    Batch norm keeps the statistics of the bundle's own lab: those of a few cells are worse (see
    docs/adapting.md). Source of the mean: Izmailov et al. 2018, arXiv:1803.05407.
    """
    model.train()
    for norm in moving_norms(model):
        norm.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=fitting.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _rate(step / fitting.steps)
    )
    targets = functional.one_hot(torch.from_numpy(cells.labels), len(CLASSES)).float()
    rng = np.random.default_rng(fitting.seed)
    mean = [torch.zeros_like(p) for p in parameters]
    counted = range(fitting.steps // 2, fitting.steps)
    state = torch.get_rng_state()
    torch.manual_seed(fitting.seed)  # of dropout
    for step in range(fitting.steps):
        # In any order, as each is mixed with the one before it.
        rows = rng.permutation(_drawn(rng, cells.labels, fitting.batch_size))
        views = cells.views(rows, step, fitting)
        key = int(rng.integers(2**63))
        views, wanted = mix(views, targets[rows], fitting.augmentation, key)
        loss = functional.cross_entropy(
            model(views), wanted, label_smoothing=fitting.label_smoothing
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step in counted:
            for total, parameter in zip(mean, parameters, strict=True):
                total += parameter.detach() / len(counted)
    torch.set_rng_state(state)
    with torch.no_grad():
        for total, parameter in zip(mean, parameters, strict=True):
            parameter.copy_(total)
    model.eval()


def _rate(done: float) -> float:
    """Return the share of the highest rate: up over a fifth of the steps, then down by a cosine."""
    rising = 0.2
    if done < rising:
        return 0.1 + 0.9 * done / rising
    return float(0.5 * (1 + np.cos(np.pi * (done - rising) / (1 - rising))))


def _drawn(rng: np.random.Generator, labels: IntArray, number: int) -> IntArray:
    """Draw rows at even distances over the classes, so that chance leaves none out of a step."""
    order = np.lexsort((rng.random(len(labels)), labels))
    ends = np.cumsum(class_weights(labels[order]))
    places = (np.arange(number) + rng.random(number)) / number
    return np.asarray(order[np.minimum(np.searchsorted(ends, places), len(order) - 1)], np.int64)


def all_decoded(images: Sequence[Encoded], preprocess: Preprocess) -> Pixels:
    """Decode cells, ``uint8 (N, S, S, 3)``.

    Raises:
        ImageError: one of them cannot be decoded.
    """
    pictures = decode_batch(images, preprocess)
    for picture in pictures:
        if isinstance(picture, ImageError):
            raise picture
    return np.stack([p.pixels for p in pictures if not isinstance(p, ImageError)])
