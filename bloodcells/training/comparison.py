"""Models trained under one recipe, beside each other and beside the published table.

A *row* is one model: how it was made, and how it did on each set of labelled images, those of the
training lab and those from elsewhere. Knows how rows are scored and written, not how a model is
trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray

from bloodcells.bundle import ModelBundle
from bloodcells.evaluation import Evaluation, Tally
from bloodcells.report.comparison import ComparedTable
from bloodcells.scoring import Scorer
from bloodcells.training.ingest import ImageSet

HOME: Final = "test"
"""The name of the training lab's own test images among the sets."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of the published table: accuracy in per cent, at home and elsewhere."""

    model: str
    optimizer: str
    local: float
    elsewhere: float


PUBLISHED: Final = (
    Published(model="custom_cnn", optimizer="", local=88.8, elsewhere=38),
    Published(model="vgg16", optimizer="", local=94.73, elsewhere=66),
    Published(model="efficientnet_b0", optimizer="", local=96.24, elsewhere=75),
    Published(model="efficientnet_b2", optimizer="", local=96.74, elsewhere=78),
    Published(model="efficientnetv2_m", optimizer="adam", local=95.15, elsewhere=74),
    Published(model="efficientnetv2_m", optimizer="lion", local=96.49, elsewhere=85),
)
"""Accuracy on the local and on a hidden test set. The optimizer is known of V2-M only.
Source: student report, Politecnico di Milano, November 2024, on about 13,000 cells of 96 px."""

MODELS: Final = (
    "custom_cnn",
    "vgg16",
    "vgg19",
    "efficientnet_b0",
    "efficientnet_b2",
    "efficientnetv2_b2",
    "efficientnetv2_m",
    "tf_efficientnet_lite0",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trained model.

    Attributes:
        model: its name.
        optimizer: of its last stage.
        pretraining: where its weights started.
        from_scratch: whether they were random.
        num_parameters: of the whole model.
        epochs: over all stages, as far as they went.
        seconds: of training steps, without validation.
        digest: the bundle's; of the first fold where there are folds.
        sets: figures by set; of several folds, one each.
    """

    model: str
    optimizer: str
    pretraining: str
    from_scratch: bool
    num_parameters: int
    epochs: int
    seconds: float
    digest: str
    sets: Mapping[str, Sequence[Evaluation]] = field(repr=False)

    def accuracy(self, name: str) -> tuple[float, float | None]:
        """Return the mean accuracy on a set, and its deviation over folds where there are some."""
        return _mean_and_deviation([e.accuracy.value for e in self.sets[name]])

    def balanced(self, name: str) -> tuple[float, float | None]:
        """Return the balanced accuracy, likewise: the mean recall of the classes a set has."""
        return _mean_and_deviation([e.balanced_accuracy for e in self.sets[name]])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        figures = {
            name: {
                "num_images": evaluations[0].num_labelled,
                "accuracy": [list(e.accuracy) for e in evaluations],
                "balanced_accuracy": [e.balanced_accuracy for e in evaluations],
                "macro_f1": [e.macro_f1 for e in evaluations],
                "calibration_error": [e.reliability.expected_error for e in evaluations],
            }
            for name, evaluations in self.sets.items()
        }
        own = {k: v for k, v in self.__dict__.items() if k != "sets"}
        return own | {"sets": figures}


def evaluate_on(bundle: ModelBundle, images: ImageSet, *, device: str) -> Evaluation:
    """Score decoded images on the cluster and compare with their labels; 8-way predictions.

    Args:
        bundle: the model.
        images: as :func:`ingest.load_images` made them with the bundle's preprocess.
        device: ``"cpu"`` or ``"cuda"``.
    """
    pieces = np.array_split(np.arange(len(images.labels)), max(1, len(images.labels) // 500))
    score: Any = ray.remote(_probabilities).options(num_gpus=int(device == "cuda"))
    given, where = ray.put(bundle), ray.put(images)
    answers = ray.get([score.remote(given, where, piece) for piece in pieces])
    probabilities = np.concatenate(answers)
    tally = Tally()
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    tally.add(images.labels, predicted, confidence, probabilities)
    evaluation = tally.evaluation()
    if evaluation is None:
        raise ValueError("a comparison needs at least one labelled image in each set")
    return evaluation


def test_rows(manifest: pa.Table) -> pa.Table:
    """Return the rows that are held back for testing."""
    return manifest.filter(pc.field("used") & (pc.field("split") == "test"))


def tables_of(rows: Sequence[Row], sets: Sequence[str]) -> list[ComparedTable]:
    """Return our tables, models from random weights in one of their own, and the published one.

    Args:
        rows: the models.
        sets: names of the sets, the training lab's first.
    """
    tables = []
    for title, from_scratch in (("From pretrained weights", False), ("From random weights", True)):
        own = [row for row in rows if row.from_scratch == from_scratch]
        if own:
            tables.append(_ours(title, own, sets))
    return [*tables, _published(rows)]


def markdown(tables: Sequence[ComparedTable], about: Mapping[str, str]) -> str:
    """Return the comparison as Markdown: what was done, and the tables."""
    facts = "\n".join(f"- {name}: {sentence}" for name, sentence in about.items())
    return "\n\n".join(["# Models compared", facts, *(t.markdown() for t in tables)]) + "\n"


def _ours(title: str, rows: Sequence[Row], sets: Sequence[str]) -> ComparedTable:
    home, *elsewhere = sets
    head = ["model", "optimizer", "parameters", "epochs", f"{home}: accuracy"]
    head += [f"{name}: accuracy (balanced)" for name in elsewhere]
    lines = []
    for row in rows:
        first = percent(*row.accuracy(home))
        if len(row.sets[home]) == 1:
            low, high = row.sets[home][0].accuracy[1:]
            first += f" ({100 * low:.1f}–{100 * high:.1f})"
        line = [f"`{row.model}`", row.optimizer, f"{row.num_parameters / 1e6:.1f} M"]
        line += [str(row.epochs), first]
        line += [f"{percent(*row.accuracy(n))} ({percent(*row.balanced(n))})" for n in elsewhere]
        lines.append(line)
    return ComparedTable(title=title, head=head, lines=lines)


def _published(rows: Sequence[Row]) -> ComparedTable:
    lines = []
    for each in PUBLISHED:
        own = next(
            (r for r in rows if r.model == each.model and each.optimizer in ("", r.optimizer)), None
        )
        here = percent(*own.accuracy(HOME)) if own else "–"
        line = [f"`{each.model}`", each.optimizer or "not said"]
        lines.append([*line, f"{each.local:g}", f"{each.elsewhere:g}", here])
    return ComparedTable(
        title="Published",
        head=["model", "optimizer", "published, local", "published, elsewhere", "ours, test"],
        lines=lines,
    )


def percent(value: float, deviation: float | None = None) -> str:
    """Return a share in per cent, with its deviation where there is one."""
    text = f"{100 * value:.1f}"
    return text if deviation is None else f"{text} ± {100 * deviation:.1f}"


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    mean = math.fsum(values) / len(values)
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else None


def _probabilities(
    bundle: ModelBundle, images: ImageSet, rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Score some images in a task."""
    scorer = Scorer(bundle, precision="float32", num_threads=1)
    return scorer.probabilities(images.pixels.take(rows))
