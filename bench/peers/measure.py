"""Interleaved timing of rivals."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping

_LEAST_SECONDS = 0.1  # of one repetition


def _timed(call: Callable[[], object], calls: int) -> float:
    """Seconds of one call, the mean of `calls`."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def interleaved(rivals: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of one call of every rival, one number a repetition. In each repetition all rivals run in a random order,
    each as many calls as fill a tenth of a second: what slows the machine for a while falls on all alike."""
    calls = {name: max(1, round(_LEAST_SECONDS / _timed(call, 1))) for name, call in rivals.items()}
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    order = list(rivals)
    shuffle = random.Random(1).shuffle
    for _ in range(repetitions):
        shuffle(order)
        for name in order:
            seconds[name].append(_timed(rivals[name], calls[name]))
    return seconds
