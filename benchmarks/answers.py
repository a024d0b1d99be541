"""What a server answered, judged: right or wrong, how fast, how many turned away.

Knows nothing of how the requests were sent.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bloodcells.cells import CLASSES

SUM_TOLERANCE: Final = 1e-3
LEAST_AGREEMENT: Final = 0.9
"""Who names another class than the model for more images than this leaves runs another model, or
shows it something else; Pillow's resampling, which is not ours, changes few."""

NUM_REASONS: Final = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One request's end.

    Attributes:
        image: which image was sent.
        began: when it was sent (at a given rate: when it was due), in s from the window's start.
        ended: when all of the answer was there.
        status: of HTTP; 0 where there was no answer, and ``body`` says why.
        retry_after_s: what the server asks to wait, if anything.
        body: the answer.
    """

    image: int
    began: float
    ended: float
    status: int
    retry_after_s: float | None = None
    body: bytes = b""

    @classmethod
    def failed(cls, image: int, when: float, why: str) -> Answer:
        """Return the end of a request that never got through."""
        return cls(image=image, began=when, ended=when, status=0, body=why.encode())


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What counts as right.

    Attributes:
        expected: ``float32 (N, 8)``: the model's own probabilities of each image, or ``None``.
        tolerance: most that a probability may differ from them; ``None`` lets it differ, and only
            the share of the same classes is counted.
    """

    expected: npt.NDArray[np.float32] | None = None
    tolerance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Load:
    """What came of loading a server for a while.

    Attributes:
        seconds: the window.
        images_per_second: right answers that came in the window, by its length.
        num_answered: answers with status 200 to requests begun in the window; the percentiles are
            theirs.
        p50_ms, p90_ms, p99_ms, max_ms: from request to whole answer; ``None`` without any.
        statuses: all answers, of the warm-up too, by status.
        num_failed: no answer, or a status other than 200 and 503, at any time.
        num_wrong: status 200 and not what is right.
        reasons: the first few failed and wrong answers.
        agreement: share of answers with the class that the model itself gives; ``None`` unknown.
        max_difference: largest difference of a probability from the model's own.
        num_refused: 503s to requests begun in the window.
        refused_share: their share of all answers to those.
        refused_p50_ms, refused_p99_ms: how fast they came.
        num_without_retry_after: those that name no time to come again, or none above 0.
        mean_in_flight: requests open at a time, on average over the window.
    """

    seconds: float
    images_per_second: float
    num_answered: int
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    statuses: dict[str, int]
    num_failed: int
    num_wrong: int
    reasons: list[str]
    agreement: float | None
    max_difference: float | None
    num_refused: int
    refused_share: float
    refused_p50_ms: float | None
    refused_p99_ms: float | None
    num_without_retry_after: int
    mean_in_flight: float


def summarise(answers: Sequence[Answer], seconds: float, judgement: Judgement) -> Load:
    """Judge all answers and measure those of the window ``[0, seconds)``."""
    reasons: list[str] = []
    right: list[Answer] = []
    differences: list[float] = []
    num_failed = num_wrong = num_agreeing = 0
    for answer in answers:
        if answer.status == 200:
            found = read_probabilities(answer.body)
            difference, agrees = _compare(found, answer.image, judgement)
            is_far = judgement.tolerance is not None and difference > judgement.tolerance
            if found is None or is_far:
                num_wrong += 1
                reasons.append(f"wrong by {difference:.3g}: {_start(answer.body)}")
                continue
            right.append(answer)
            num_agreeing += agrees
            differences.append(difference)
        elif answer.status != 503:
            num_failed += 1
            reasons.append(f"status {answer.status}: {_start(answer.body)}")
    in_window = [answer for answer in answers if 0 <= answer.began < seconds]
    answered = [answer for answer in in_window if answer.status == 200]
    refused = [answer for answer in in_window if answer.status == 503]
    times, refusals = _milliseconds(answered), _milliseconds(refused)
    is_compared = judgement.expected is not None and bool(right)
    return Load(
        seconds=seconds,
        images_per_second=sum(0 <= answer.ended < seconds for answer in right) / seconds,
        num_answered=len(answered),
        p50_ms=percentile(times, 50),
        p90_ms=percentile(times, 90),
        p99_ms=percentile(times, 99),
        max_ms=percentile(times, 100),
        statuses={
            str(status): count
            for status, count in sorted(Counter(answer.status for answer in answers).items())
        },
        num_failed=num_failed,
        num_wrong=num_wrong,
        reasons=reasons[:NUM_REASONS],
        agreement=num_agreeing / len(right) if is_compared else None,
        max_difference=max(differences) if is_compared else None,
        num_refused=len(refused),
        refused_share=len(refused) / len(in_window) if in_window else 0.0,
        refused_p50_ms=percentile(refusals, 50),
        refused_p99_ms=percentile(refusals, 99),
        num_without_retry_after=sum(not (answer.retry_after_s or 0) > 0 for answer in refused),
        mean_in_flight=sum(
            max(0.0, min(answer.ended, seconds) - max(answer.began, 0.0)) for answer in answers
        )
        / seconds,
    )


def read_probabilities(body: bytes) -> list[float] | None:
    """Return the probabilities of an answer's one image, in the order of ``CLASSES``.

    ``None`` unless there is one image, with a class and eight probabilities that sum to one.
    """
    try:
        (image,) = json.loads(body)["images"]
        found = [float(image["probabilities"][name]) for name in CLASSES]
        is_whole = abs(sum(found) - 1) <= SUM_TOLERANCE
        return found if is_whole and image["predicted_class"] in CLASSES else None
    except (ValueError, KeyError, TypeError):
        return None


def why_void(load: dict[str, Any], *, may_refuse: bool = False) -> str | None:
    """Say why a load is no measurement; ``None`` where it is one.

    Args:
        load: a :class:`Load` as JSON has it.
        may_refuse: whether 503s are what is measured.
    """
    if load["num_failed"]:
        return f"{load['num_failed']} failed: {'; '.join(load['reasons'])}"
    if load["num_wrong"]:
        return f"{load['num_wrong']} wrong: {'; '.join(load['reasons'])}"
    if not may_refuse and load["statuses"].get("503"):
        return f"{load['statuses']['503']} turned away"
    if load["agreement"] is not None and load["agreement"] < LEAST_AGREEMENT:
        return f"the model's class for {load['agreement']:.1%} of the images only"
    return None if load["num_answered"] else "no answer"


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the least value that ``percent`` % of the values do not exceed; ``None`` of none."""
    if not values:
        return None
    return float(np.percentile(values, percent, method="inverted_cdf"))


def _compare(found: list[float] | None, image: int, judgement: Judgement) -> tuple[float, bool]:
    if found is None or judgement.expected is None:
        return 0.0, False
    own = judgement.expected[image]
    difference = float(np.abs(np.array(found) - own).max())
    return difference, int(np.argmax(found)) == int(own.argmax())


def _milliseconds(answers: Sequence[Answer]) -> list[float]:
    return [(answer.ended - answer.began) * 1000 for answer in answers]


def _start(body: bytes) -> str:
    return body[:160].decode(errors="replace")
