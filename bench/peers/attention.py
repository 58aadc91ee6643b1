"""Attention of this library beside PyTorch's and ONNX Runtime's, in one process, on the same arrays.

Every result is compared with the definition in double before its time counts. Writes attention.json, attention.md and
attention.png. Run by run.sh.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file

import reference
import report
from inputs import CannotRun, Case, Inputs, Work, random_inputs, trained_inputs
from library import Library
from measure import interleaved
from peers import Peer, Run, all_peers

CASES = [
    *(Case(Work.FORWARD, keys) for keys in (1024, 4096, 16384)),
    Case(Work.DECODE, 65536),
    *(Case(Work.FORWARD_BACKWARD, keys) for keys in (1024, 4096)),
]
QUICK_CASES = [
    *(Case(Work.FORWARD, keys) for keys in (256, 512)),
    Case(Work.DECODE, 2048),
    Case(Work.FORWARD_BACKWARD, 256),
]
CHECKED_ROWS = 64  # of every head, where a case has no gradients
# The largest error of an output, over the root mean square of v, and of a gradient, over its largest number. Trained
# scores are up to ten times as large as random ones, and so is their rounding error.
LARGEST_ERROR = {"random": 1e-5, "trained": 1e-4}


class WrongResult(Exception):
    """A result that is not what the definition says."""


@dataclass
class Result:
    """One peer in one case."""

    data: str  # random or trained
    work: str
    keys: int
    peer: str
    title: str
    seconds: list[float] = field(default_factory=list)  # of a call, one number a repetition
    error: float | None = None  # the largest against double; see LARGEST_ERROR
    reason: str = ""  # why it did not run

    @property
    def median(self) -> float:
        """Seconds of a call."""
        return report.median(self.seconds)


class Checker:
    """The results of a case by the definition, with a bias and without, each computed when it is first needed."""

    def __init__(self, case: Case, inputs: Inputs, largest_error: float) -> None:
        self._case, self._inputs, self._largest_error = case, inputs, largest_error
        self._rows = np.unique(np.linspace(0, inputs.queries - 1, CHECKED_ROWS).astype(np.int64))
        self._expected: dict[bool, tuple[reference.Double, ...]] = {}

    def error(self, results: Sequence[npt.ArrayLike], biased: bool) -> float:
        """The largest error of all results. Raises WrongResult if it is too large, or not a number."""
        worst = 0.0
        expectation = self._expectation(biased)
        scales = [np.sqrt(np.square(self._inputs.v).mean()), *(np.abs(x).max() for x in expectation[1:])]
        for result, expected, scale in zip(results, expectation, scales, strict=True):
            actual = np.asarray(result).reshape(self._inputs.heads, -1, self._inputs.head_dim)
            if self._case.work is not Work.FORWARD_BACKWARD:
                actual = actual[:, self._rows]
            worst = np.maximum(worst, np.abs(actual - expected).max() / scale)  # NaN stays NaN
        if not worst <= self._largest_error:
            raise WrongResult(f"its result is wrong by {worst:.1e}; expected at most {self._largest_error:.0e}")
        return float(worst)

    def _expectation(self, biased: bool) -> tuple[reference.Double, ...]:
        if biased not in self._expected:
            slopes = self._inputs.slopes if biased else np.zeros_like(self._inputs.slopes)
            if self._case.work is Work.FORWARD_BACKWARD:
                self._expected[biased] = reference.gradients(self._inputs, slopes)
            else:
                self._expected[biased] = (reference.output_rows(self._inputs, slopes, self._rows),)
        return self._expected[biased]


def measure_case(data: str, case: Case, inputs: Inputs, peers: Sequence[Peer], repetitions: int) -> list[Result]:
    """All peers of a case. A peer that cannot run, or is wrong, says so and is left out."""
    results = [Result(data, case.work.value, case.keys, peer.name, peer.title) for peer in peers]
    checker = Checker(case, inputs, LARGEST_ERROR[data])
    runs: dict[str, Run] = {}
    for peer, result in zip(peers, results, strict=True):
        try:
            run = peer.prepare(case, inputs)
            result.error = checker.error(run(), peer.biased)
            runs[peer.name] = run
        except Exception as error:  # whatever a peer raises is its answer, and the others go on
            result.reason = _first_line(error)
            print(f"    {peer.title}: {result.reason}", flush=True)
    seconds = interleaved(runs, repetitions)
    for result in results:
        result.seconds = seconds.get(result.peer, [])
    return results


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [repr(error)]
    return lines[0] if isinstance(error, (CannotRun, WrongResult)) else f"{type(error).__name__}: {lines[0]}"


def to_table(results: Sequence[Result]) -> str:
    """One row a case and peer, and below them why a peer is missing."""
    rows, missing = [], []
    for result in results:
        case = f"{result.work}, {result.keys:,} " + ("keys" if result.work == Work.DECODE.value else "tokens")
        if not result.seconds:
            missing.append(f"- {result.title}, {case}: {result.reason}\n")
            continue
        rivals = {r.peer: r for r in results if (r.work, r.keys) == (result.work, result.keys) and r.seconds}
        ours = [rivals[name].median if name in rivals else None for name in ("alibi_dense", "alibi")]
        median, spread = report.seconds_text(result.median), report.percent(report.spread(result.seconds))
        ratios = [f"{result.median / seconds:.2f} ×" if seconds else "" for seconds in ours]
        rows.append([case, result.title, median, spread, *ratios, f"{result.error:.0e}"])
    columns = ["case", "method", "median", "cv", "over every key", "over default", "error"]
    return report.table(columns, rows) + ("\n" if missing else "") + "".join(missing)


def to_blocks(results: Sequence[Result]) -> str:
    """The forward's times for gnuplot: a block for each data set and peer, named so; in it tokens and seconds."""
    blocks: dict[str, list[str]] = {}
    for result in results:
        if result.work == Work.FORWARD.value:
            block = blocks.setdefault(f"{result.data} {result.peer}.", [])
            if result.seconds:
                block.append(f"{result.keys} {result.median}")
    return "\n\n".join(f"# {name}\n" + "\n".join(lines or ["? ?"]) + "\n" for name, lines in blocks.items())


def main() -> None:
    """Measures, and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, required=True, help="the library of library.cpp")
    parser.add_argument("--qkv", type=Path, help="q, k and v of a checkpoint, made by bloom.py")
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="small sizes, two repetitions: a check, not a measurement")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    peers = all_peers(Library(arguments.library, arguments.threads), arguments.threads)
    cases, repetitions = (QUICK_CASES, 2) if arguments.quick else (CASES, 7)

    makers: dict[str, Callable[[Case], Inputs]] = {"random": random_inputs}
    trained_tokens = 0
    if arguments.qkv:
        trained = load_file(arguments.qkv)
        trained_tokens = trained["q"].shape[1]
        makers["trained"] = lambda case: trained_inputs(case, trained["q"], trained["k"], trained["v"])

    results: dict[str, list[Result]] = {}
    for data, make in makers.items():
        results[data] = []
        for case in cases:
            if data == "trained":  # a context as long as there is
                case = Case(case.work, min(case.keys, trained_tokens))
            print(f"{data} q, k, v: {case.work.value}, {case.keys:,}", flush=True)
            results[data] += measure_case(data, case, make(case), peers, repetitions)
            gc.collect()  # a bias of gigabytes goes before the next one comes

    about = report.machine(arguments.threads)
    text = f"Causal attention, float32. {report.conditions(about)} Medians of {repetitions} interleaved repetitions.\n"
    for data, of_data in results.items():
        text += f"\n{data.capitalize()} q, k, v:\n\n{to_table(of_data)}"
    everything = [result for of_data in results.values() for result in of_data]
    report.write(arguments.out, "attention", {"machine": about, "results": [asdict(r) for r in everything]}, text)
    blocks = arguments.out / "attention.dat"
    blocks.write_text(to_blocks(everything))
    report.draw(Path(__file__).with_name("attention.gnuplot"), blocks, arguments.out / "attention.png")


if __name__ == "__main__":
    main()
