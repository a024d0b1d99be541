"""The limit that a stated share of home pictures is above, from however few of them.

The 99 % quantile of a hundred pictures is passed by two in a hundred others, as it lies where these
hundred happened to end. Knows nothing of what the numbers mean; greater is stranger.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

FALSE_ALARMS: Final = 0.01
"""Share of home pictures, held out from training, that are taken for strangers."""

_TAIL: Final = 0.2
"""Share of the pictures, the greatest, that tell how fast larger ones become rare."""


def limit_for(values: npt.ArrayLike) -> float:
    """Return what the next value is above with a chance of ``FALSE_ALARMS``, or less.

    Of 99 values or more that is one of them, whatever their distribution.
    Source: Wilks 1941, "Determination of Sample Sizes for Setting Tolerance Limits".

    Of fewer, it lies beyond the greatest. Their greatest fifth is taken for the tail of an
    exponential distribution. Source: Davison and Smith 1990, "Models for Exceedances over High
    Thresholds" (tails); Geisser 1993, "Predictive Inference" (the next value from few). Of PBC's
    validation cells, with the limit from 24 of them, 0.4 to 1.6 % of the others were above, and
    4 % with the quantile.

    Args:
        values: in any order, ``float (N,)``; a single one tells nothing of others and is returned.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    num = len(ordered)
    rank = num + 1 - int((num + 1) * FALSE_ALARMS)
    if rank <= num:
        return float(ordered[rank - 1])
    if num == 1:
        return float(ordered[0])
    in_tail = min(num - 1, max(3, int(np.ceil(num * _TAIL))))
    start = ordered[-in_tail - 1]
    mean_excess = float((ordered[-in_tail:] - start).mean())
    rarer = in_tail / num / FALSE_ALARMS
    beyond = in_tail * mean_excess * (rarer ** (1 / in_tail) - 1)
    return float(max(ordered[-1], start + beyond))
