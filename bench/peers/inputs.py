"""The inputs of a case, and the memory that a case may take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


class CannotRun(Exception):
    """Why a peer cannot run a case."""


class Work(Enum):
    """What is timed."""

    FORWARD = "forward"
    DECODE = "decode"
    FORWARD_BACKWARD = "forward and backward"


@dataclass(frozen=True)
class Case:
    """Causal attention, as many queries as keys; in decode one query, on the last key."""

    work: Work
    keys: int

    @property
    def queries(self) -> int:
        return 1 if self.work is Work.DECODE else self.keys


@dataclass(frozen=True)
class Inputs:
    """One batch, float32, contiguous. Query i has position i + keys - queries. The scale is 1 / sqrt(head_dim)."""

    q: Array  # [heads, queries, head_dim]
    k: Array  # [heads, keys, head_dim]
    v: Array  # [heads, keys, head_dim]
    grad_output: Array  # [heads, queries, head_dim]
    slopes: Array  # [heads]

    @property
    def heads(self) -> int:
        return self.q.shape[0]

    @property
    def queries(self) -> int:
        return self.q.shape[1]

    @property
    def keys(self) -> int:
        return self.k.shape[1]

    @property
    def head_dim(self) -> int:
        return self.q.shape[2]

    @property
    def scores_bytes(self) -> int:
        """The size of an array of all scores, [heads, queries, keys]."""
        return 4 * self.heads * self.queries * self.keys

    @cached_property
    def bias(self) -> Array:
        """The bias of ALiBi as a tensor, [heads, queries, keys], -inf where the causal mask hides a key."""
        require_memory(self.scores_bytes + self.scores_bytes // self.heads, "the bias tensor")
        positions = np.arange(self.queries, dtype=np.float32) + np.float32(self.keys - self.queries)
        distance = positions[:, None] - np.arange(self.keys, dtype=np.float32)
        distance[distance < 0] = np.inf
        result = np.empty((self.heads, self.queries, self.keys), np.float32)
        for head, slope in enumerate(self.slopes):
            np.multiply(distance, -slope, out=result[head])
        return result


def slopes(heads: int) -> Array:
    """The slopes of the authors' code, [heads]: 2^(-8h/n); where n is no power of two, those of the next smaller power,
    then every other one of twice that power."""
    power = 2 ** math.floor(math.log2(heads))
    first = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    rest = [2 ** (-4 * h / power) for h in range(1, 2 * (heads - power), 2)]
    return np.array(first + rest, np.float32)


def random_inputs(case: Case, heads: int = 8, head_dim: int = 64) -> Inputs:
    """Normal numbers of mean 0 and variance 1, from a fixed seed."""
    random = np.random.default_rng(case.keys)

    def normal(tokens: int) -> Array:
        return random.standard_normal((heads, tokens, head_dim), dtype=np.float32)

    return Inputs(normal(case.queries), normal(case.keys), normal(case.keys), normal(case.queries), slopes(heads))


def trained_inputs(case: Case, q: Array, k: Array, v: Array) -> Inputs:
    """The last queries of a context that is the first `case.keys` tokens of q, k and v, [heads, tokens, head_dim]. The
    gradient of the output is random."""
    heads, _, head_dim = q.shape
    random = np.random.default_rng(case.keys)
    grad_output = random.standard_normal((heads, case.queries, head_dim), dtype=np.float32)
    queries = np.ascontiguousarray(q[:, case.keys - case.queries : case.keys])
    keys, values = (np.ascontiguousarray(x[:, : case.keys]) for x in (k, v))
    return Inputs(queries, keys, values, grad_output, slopes(heads))


def available_memory() -> int:
    """Bytes that the system can give without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/meminfo has no MemAvailable")


def require_memory(needed: int, what: str) -> None:
    """Raises CannotRun where `needed` bytes are not there; a tenth of the available memory stays free."""
    available = available_memory()
    if needed > 0.9 * available:
        raise CannotRun(f"{what} needs {needed / 1e9:.1f} GB; {available / 1e9:.1f} GB are available")
