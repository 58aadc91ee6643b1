"""The library's attention by ctypes, through the plain C functions of library.cpp. It reads and writes NumPy arrays in
place."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np

from inputs import Array, Inputs

_DEFAULT = -1.0  # below 0: the library's default tolerance


class _Sizes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ssize_t) for name in ("heads", "queries", "keys", "head_dim")]


def _pointer(array: Array) -> ctypes.c_void_p:
    """A pointer that keeps the array alive."""
    if array.dtype != np.float32 or not array.flags.c_contiguous:
        raise ValueError("expected a contiguous array of float32")
    return array.ctypes.data_as(ctypes.c_void_p)


class Library:
    """Calls run one at a time, on `threads` threads. Every function prepares a call and returns it; the call returns
    its results, the same arrays each time. A tolerance of None is the library's default."""

    def __init__(self, path: Path, threads: int) -> None:
        self._c = ctypes.CDLL(str(path))
        for name in ("forward", "forward_backward", "cache_new", "decode"):
            getattr(self._c, f"peers_{name}").restype = ctypes.c_char_p
        self._c.peers_session_new.restype = ctypes.c_void_p
        self._session = ctypes.c_void_p(self._c.peers_session_new(threads))
        if not self._session:
            raise MemoryError("no memory for a session of the library")

    def forward(self, inputs: Inputs, tolerance: float | None) -> Callable[[], tuple[Array]]:
        """Returns the output, [heads, queries, head_dim]."""
        output = np.empty_like(inputs.q)
        arrays = inputs.q, inputs.k, inputs.v, inputs.slopes
        arguments = self._arguments(inputs, arrays, tolerance, [output])

        def run() -> tuple[Array]:
            _check(self._c.peers_forward(*arguments))
            return (output,)

        return run

    def forward_backward(self, inputs: Inputs, tolerance: float | None) -> Callable[[], tuple[Array, ...]]:
        """Returns the output and the gradients of q, k and v."""
        results = [np.empty_like(x) for x in (inputs.q, inputs.q, inputs.k, inputs.v)]
        lse = np.empty(inputs.q.shape[:2], np.float32)
        arrays = inputs.q, inputs.k, inputs.v, inputs.slopes, inputs.grad_output
        arguments = self._arguments(inputs, arrays, tolerance, [results[0], lse, *results[1:]])

        def run() -> tuple[Array, ...]:
            _check(self._c.peers_forward_backward(*arguments))
            return tuple(results)

        return run

    def decode(self, inputs: Inputs, tolerance: float | None) -> Callable[[], tuple[Array]]:
        """Fills a cache with k and v; the call attends over it and returns the output, [heads, queries, head_dim]."""
        cache = _Cache(self._c, inputs)
        output = np.empty_like(inputs.q)
        session, sizes, *rest = self._arguments(inputs, (inputs.q, inputs.slopes), tolerance, [output])

        def run() -> tuple[Array]:
            _check(self._c.peers_decode(session, sizes, cache.pointer, *rest))
            return (output,)

        return run

    def _arguments(
        self, inputs: Inputs, arrays: tuple[Array, ...], tolerance: float | None, results: list[Array]
    ) -> list[object]:
        sizes = _sizes_of(inputs)
        limit = ctypes.c_double(_DEFAULT if tolerance is None else tolerance)
        return [self._session, ctypes.byref(sizes), *map(_pointer, arrays), limit, *map(_pointer, results)]


class _Cache:
    """A cache of the library that is freed with this object."""

    def __init__(self, c: ctypes.CDLL, inputs: Inputs) -> None:
        self._c = c
        self.pointer = ctypes.c_void_p()
        sizes = _sizes_of(inputs)
        k, v = _pointer(inputs.k), _pointer(inputs.v)
        _check(c.peers_cache_new(ctypes.byref(sizes), k, v, ctypes.byref(self.pointer)))

    def __del__(self) -> None:
        self._c.peers_cache_delete(self.pointer)


def _sizes_of(inputs: Inputs) -> _Sizes:
    return _Sizes(inputs.heads, inputs.queries, inputs.keys, inputs.head_dim)


def _check(message: bytes | None) -> None:
    if message is not None:
        raise RuntimeError(message.decode())
