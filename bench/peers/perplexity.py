"""Perplexity of a checkpoint by context length: this library in three types, beside transformers."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import report
from programs import Programs
from text import own_text, validation_file

Curves = dict[str, dict[int, float]]
"""Perplexity by window, by dtype as transformers names it."""

_DTYPES = {"float": "float32", "bfloat16": "bfloat16", "half": "float16"}  # ours: transformers'
_WINDOWS = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]
_LARGEST_EAGER_WINDOW = 4096  # that transformers is measured at: its scores grow with the square


def _of_ours(programs: Programs, text: Sequence[str | Path], windows: Sequence[int], limit: int) -> Curves:
    curves: Curves = {}
    for name, dtype in _DTYPES.items():
        curve = curves[dtype] = {}
        for window in windows:
            print(f"perplexity of pretrained, {dtype}, {window:,}", flush=True)
            options = ["--window", str(window), "--limit", str(limit), "--dtype", name]
            finished = programs.ours("perplexity", *text, *options, threads=os.cpu_count())
            if finished.status != 0:
                raise SystemExit(f"pretrained perplexity: {finished.failure}")
            _, _, _, value, *_ = finished.output.splitlines()[-1].split()  # dtype, window, tokens, perplexity, ...
            curve[window] = float(value)
    return curves


def _of_transformers(programs: Programs, windows: Sequence[int], limit: int) -> Curves:
    """A type that transformers cannot run has no points; why is printed."""
    curves: Curves = {}
    for dtype in _DTYPES.values():
        print(f"perplexity of transformers, {dtype}", flush=True)
        options = ["--windows", ",".join(map(str, windows)), "--limit", str(limit), "--dtype", dtype]
        finished = programs.transformers("perplexity", *options, threads=os.cpu_count())
        if finished.status != 0:
            print(f"    {finished.failure}", flush=True)
        curves[dtype] = _numbered(json.loads(finished.output or "{}"))
    return curves


def _numbered(points: dict[str, float]) -> dict[int, float]:
    return {int(window): value for window, value in points.items()}


def read_perplexity(path: Path) -> Curves:
    """Reads perplexity.json: {"float32 eager": {"512": 6.99, ...}, ...}."""
    of_name = json.loads(path.read_text())
    return {dtype: _numbered(of_name.get(f"{dtype} eager", {})) for dtype in _DTYPES.values()}


def measure_perplexity(programs: Programs, out: Path, largest: int, measured: int | None) -> tuple[Curves, Curves, str]:
    """This library's curves, transformers', and where the latter are from.

    Of the first `largest` predictions where the model has a perplexity.json. Else, or if `measured` is given,
    transformers is measured, and both score the first `measured` predictions (16,384). On all cores, because no times
    are taken. `out` is a folder.
    """
    held_out = validation_file(programs.model)
    text: list[str | Path] = ["--ids", held_out] if held_out else ["--text", out / "text.txt"]
    if not held_out:
        (out / "text.txt").write_text(own_text())
    known = programs.model / "perplexity.json"
    reads = known.exists() and measured is None
    limit = largest if reads else measured or 16384
    windows = [window for window in _WINDOWS if window <= limit]
    ours = _of_ours(programs, text, windows, limit)
    if reads:
        return ours, read_perplexity(known), "as the model's perplexity.json says"
    eager = [window for window in windows if window <= _LARGEST_EAGER_WINDOW]
    return ours, _of_transformers(programs, eager, limit), f"measured here, the first {limit:,} predictions"


def perplexity_table(ours: Curves, peer: Curves) -> str:
    """One row a window; in brackets how far this library's 16 bits are from its float32."""
    rows = []
    for window, exact in ours["float32"].items():
        row = [f"{window:,}"]
        row += [f"{peer[dtype][window]:.4g}" if window in peer[dtype] else "" for dtype in ours]
        for dtype in ours:
            value = ours[dtype][window]
            row.append(f"{value:.4g}" + ("" if dtype == "float32" else f" ({100 * (value / exact - 1):+.2f} %)"))
        rows.append(row)
    columns = [f"{program} {dtype}" for program in ("transformers", "alibi") for dtype in ours]
    return report.table(["context", *columns], rows)


def to_blocks(ours: Curves, peer: Curves) -> str:
    """For gnuplot: a block for each program and dtype, named so; in it windows and perplexities."""
    blocks = []
    for program, curves in (("transformers", peer), ("alibi", ours)):
        for dtype, points in curves.items():
            lines = [f"{window} {value}" for window, value in sorted(points.items())] or ["? ?"]
            blocks.append(f"# {program} {dtype}.\n" + "\n".join(lines) + "\n")
    return "\n\n".join(blocks)
