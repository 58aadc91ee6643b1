"""A BLOOM checkpoint in `pretrained` (examples/pretrained) beside transformers' BloomForCausalLM, eager attention.

Speed and memory: the two take turns, float32, on as many threads. Each run is a process of its own that reads a prompt at
once and continues it greedily. Perplexity by context length: this library in three types, beside transformers' figures.
Writes pretrained.json, pretrained.md and perplexity.png. Run by run.sh.

This process imports nothing large: what it holds when it starts a program counts for that program's peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import report
from text import own_text, validation_file

DTYPES = {"float": "float32", "bfloat16": "bfloat16", "half": "float16"}  # ours: transformers'
WINDOWS = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]
LARGEST_EAGER_WINDOW = 4096  # that transformers is measured at: its scores grow with the square


@dataclass(frozen=True)
class Settings:
    contexts: tuple[int, ...]  # tokens of the prompts
    tokens: int  # generated behind each
    repetitions: int
    largest_window: int
    predictions: int  # scored, where transformers' perplexity has to be measured
    reads_perplexity: bool  # perplexity.json of the model, if there


FULL = Settings((16, 8192), 64, 5, 65536, 16384, True)
QUICK = Settings((16, 512), 8, 2, 1024, 1024, False)


@dataclass(frozen=True)
class Finished:
    """A program that has ended."""

    output: str
    errors: str
    status: int
    peak_bytes: int  # largest resident memory, as the kernel counts it (ru_maxrss)


@dataclass
class Speed:
    """One program after one context. Lists have a number a repetition."""

    context: int
    program: str
    title: str
    prompt_seconds: list[float] = field(default_factory=list)
    token_seconds: list[float] = field(default_factory=list)  # of one more token
    prompt_attention: list[float] = field(default_factory=list)  # share of the time; of this library only
    token_attention: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)  # generated
    reason: str = ""  # why it did not run


def run(command: Sequence[str | Path]) -> Finished:
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        texts = output.read().decode(), errors.read().decode(errors="replace")
    return Finished(*texts, process.returncode, 1024 * usage.ru_maxrss)


def failure(finished: Finished) -> str:
    """Why a program failed, in a line."""
    if finished.status < 0:
        return f"ended by signal {-finished.status}"
    return (finished.errors.strip().splitlines() or [f"status {finished.status}"])[-1]


class Programs:
    """How the two programs are called."""

    def __init__(self, ours: Path, model: Path, threads: int) -> None:
        self._ours, self._model, self._threads = ours, model, threads

    def ours(self, command: str, *options: str | Path, threads: int | None = None) -> Finished:
        return run([self._ours, self._model, command, "--threads", str(threads or self._threads), *options])

    def transformers(self, command: str, *options: str | Path, threads: int | None = None) -> Finished:
        bloom = Path(__file__).with_name("bloom.py")
        return run([sys.executable, bloom, self._model, command, "--threads", str(threads or self._threads), *options])

    def ids(self, context: int) -> list[int]:
        """The first tokens of the model's text."""
        tokens = self.transformers("ids", "--context", str(context))
        if tokens.status != 0:
            raise SystemExit(f"{self._model}: its text cannot be read: {failure(tokens)}")
        return json.loads(tokens.output)["ids"]


def measure_ours(programs: Programs, speed: Speed, tokens: int, prompt: str, tolerance: Sequence[str]) -> None:
    finished = programs.ours("generate", "--ids", prompt, "--tokens", str(tokens), *tolerance)
    line = r"{}: (\d+) tokens in ([\d.]+) s, .*?([\d.]+) % of it attention"
    prompted, generated = (re.search(line.format(what), finished.errors) for what in ("prompt", "generated"))
    if finished.status != 0 or not prompted or not generated:
        speed.reason = failure(finished)
        return
    speed.prompt_seconds.append(float(prompted[2]))
    speed.prompt_attention.append(float(prompted[3]) / 100)
    # The first token comes from the prompt's logits: it is not read.
    speed.token_seconds.append(float(generated[2]) / max(1, int(generated[1]) - 1))
    speed.token_attention.append(float(generated[3]) / 100)
    speed.peak_bytes.append(finished.peak_bytes)
    speed.ids = [int(token) for token in finished.output.split(",")]


def measure_transformers(programs: Programs, speed: Speed, tokens: int) -> None:
    finished = programs.transformers("generate", "--context", str(speed.context), "--tokens", str(tokens))
    if finished.status != 0:
        speed.reason = failure(finished)
        return
    result = json.loads(finished.output)
    speed.prompt_seconds.append(result["prompt_seconds"])
    speed.token_seconds.append(result["seconds"] / (tokens - 1))
    speed.peak_bytes.append(finished.peak_bytes)
    speed.ids = result["ids"]


def measure_speed(programs: Programs, settings: Settings) -> list[Speed]:
    """Both programs by turns; the order of a turn is reversed in every other repetition."""
    speeds: list[Speed] = []
    ids = programs.ids(max(settings.contexts))
    for context in settings.contexts:
        prompt = ",".join(map(str, ids[:context]))
        default = Speed(context, "alibi", "pretrained, default")
        dense = Speed(context, "alibi_dense", "pretrained, every key")
        peer = Speed(context, "transformers", "transformers, eager")
        turns = [
            (default, lambda: measure_ours(programs, default, settings.tokens, prompt, [])),
            (dense, lambda: measure_ours(programs, dense, settings.tokens, prompt, ["--tolerance", "0"])),
            (peer, lambda: measure_transformers(programs, peer, settings.tokens)),
        ]
        for repetition in range(settings.repetitions):
            print(f"after {context:,} tokens: repetition {repetition + 1} of {settings.repetitions}", flush=True)
            for speed, measure in turns if repetition % 2 == 0 else reversed(turns):
                if not speed.reason:
                    measure()
        speeds += [default, dense, peer]
    return speeds


def speed_table(speeds: Sequence[Speed]) -> str:
    """Prefill, generation and memory; ratios are over `pretrained` by default."""
    rows, missing = [], []
    for speed in speeds:
        if speed.reason:
            missing.append(f"- {speed.title}, after {speed.context:,} tokens: {speed.reason}\n")
            continue
        ours, peer = (
            next(s for s in speeds if s.context == speed.context and s.program == program)
            for program in ("alibi", "transformers")
        )
        prompt, token = report.median(speed.prompt_seconds), report.median(speed.token_seconds)
        ratios = ["", ""]
        if not ours.reason:
            ratios = [
                f"{prompt / report.median(ours.prompt_seconds):.2f} ×",
                f"{token / report.median(ours.token_seconds):.2f} ×",
            ]
        equal = sum(1 for _ in _common_prefix(speed.ids, peer.ids)) if not peer.reason else 0
        rows.append(
            [
                f"{speed.context:,}",
                speed.title,
                report.seconds_text(prompt),
                report.percent(report.spread(speed.prompt_seconds)),
                ratios[0],
                f"{1 / token:.1f}",
                report.percent(report.spread(speed.token_seconds)),
                ratios[1],
                f"{max(speed.peak_bytes) / 1e6:,.0f} MB",
                "" if peer.reason else f"{equal} of {len(speed.ids)}",
            ]
        )
    columns = ["context", "program", "prefill", "cv", "over default", "tokens/s", "cv", "over default", "peak", "same tokens"]
    return report.table(columns, rows) + ("\n" if missing else "") + "".join(missing)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> list[int]:
    length = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return list(a[:length])


def attention_table(speeds: Sequence[Speed]) -> str:
    """What share of the time attention is, and what pruning saves of it."""
    rows = []
    for default in speeds:
        dense = next(s for s in speeds if s.context == default.context and s.program == "alibi_dense")
        if default.program != "alibi" or default.reason or dense.reason:
            continue
        for what, seconds, share in (
            ("prefill", "prompt_seconds", "prompt_attention"),
            ("one more token", "token_seconds", "token_attention"),
        ):
            shares = [report.median(getattr(speed, share)) for speed in (dense, default)]
            attention = [
                report.median([a * b for a, b in zip(getattr(speed, seconds), getattr(speed, share))])
                for speed in (dense, default)
            ]
            saved = 1 - attention[1] / attention[0] if attention[0] else None
            cells = [f"{report.seconds_text(time)}, {report.percent(part)}" for time, part in zip(attention, shares)]
            rows.append([f"{default.context:,}", what, *cells, report.percent(saved)])
    return report.table(["context", "of", "attention, every key", "attention, default", "pruning saves"], rows)


Curves = dict[str, dict[int, float]]  # perplexity by window, by dtype as transformers names it


def perplexity_of_ours(programs: Programs, text: Sequence[str | Path], windows: Sequence[int], limit: int) -> Curves:
    curves: Curves = {}
    for name, dtype in DTYPES.items():
        curve = curves[dtype] = {}
        for window in windows:
            print(f"perplexity of pretrained, {dtype}, {window:,}", flush=True)
            options = ["--window", str(window), "--limit", str(limit), "--dtype", name]
            finished = programs.ours("perplexity", *text, *options, threads=os.cpu_count())
            if finished.status != 0:
                raise SystemExit(f"pretrained perplexity: {failure(finished)}")
            _, _, _, value, *_ = finished.output.splitlines()[-1].split()  # dtype, window, tokens, perplexity, ...
            curve[window] = float(value)
    return curves


def perplexity_of_transformers(programs: Programs, windows: Sequence[int], limit: int) -> Curves:
    curves: Curves = {}
    listed = ",".join(map(str, windows))
    for dtype in DTYPES.values():
        print(f"perplexity of transformers, {dtype}", flush=True)
        options = ["--windows", listed, "--limit", str(limit), "--dtype", dtype]
        finished = programs.transformers("perplexity", *options, threads=os.cpu_count())
        if finished.status != 0:
            print(f"    {failure(finished)}", flush=True)
        curves[dtype] = {int(w): p for w, p in json.loads(finished.output or "{}").items()}
    return curves


def read_perplexity(path: Path) -> Curves:
    """perplexity.json, {"float32 eager": {"512": 6.99, ...}, ...}."""
    of_name = json.loads(path.read_text())
    return {d: {int(w): p for w, p in of_name.get(f"{d} eager", {}).items()} for d in DTYPES.values()}


def measure_perplexity(programs: Programs, model: Path, settings: Settings, out: Path) -> tuple[Curves, Curves, str]:
    """This library's curves, transformers', and where those are from. Not a measurement of time: on all cores."""
    held_out = validation_file(model)
    if held_out:
        text: list[str | Path] = ["--ids", held_out]
    else:
        text = ["--text", out / "text.txt"]
        (out / "text.txt").write_text(own_text())
    known = model / "perplexity.json"
    reads = settings.reads_perplexity and known.exists()
    limit = settings.largest_window if reads else settings.predictions
    windows = [window for window in WINDOWS if window <= min(limit, settings.largest_window)]
    ours = perplexity_of_ours(programs, text, windows, limit)
    if reads:
        return ours, read_perplexity(known), "as the model's perplexity.json says"
    eager = [window for window in windows if window <= LARGEST_EAGER_WINDOW]
    return ours, perplexity_of_transformers(programs, eager, limit), f"measured here, the first {limit:,} predictions"


def perplexity_table(ours: Curves, peer: Curves) -> str:
    """Windows down; in brackets how far this library's 16 bits are from its float32."""
    rows = []
    for window in ours["float32"]:
        row = [f"{window:,}"]
        row += [f"{peer[dtype][window]:.4g}" if window in peer[dtype] else "" for dtype in ours]
        for dtype in ours:
            value, exact = ours[dtype][window], ours["float32"][window]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, required=True, help="the program pretrained")
    parser.add_argument("--model", type=Path, required=True, help="a BLOOM checkpoint, a folder as on the hub")
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="small sizes, two repetitions: a check, not a measurement")
    arguments = parser.parse_args()

    settings = QUICK if arguments.quick else FULL
    programs = Programs(arguments.program, arguments.model, arguments.threads)
    about = report.machine(arguments.threads)
    speeds = measure_speed(programs, settings)
    ours, peer, source = measure_perplexity(programs, arguments.model, settings, arguments.out)

    text = f"""A BLOOM checkpoint, float32. {report.conditions(about)} Medians of {settings.repetitions} runs by turns.

{speed_table(speeds)}
Attention in pretrained, time and share of all:

{attention_table(speeds)}
Perplexity by context; transformers {source}:

{perplexity_table(ours, peer)}"""
    results = {
        "machine": about,
        "speed": [asdict(speed) for speed in speeds],
        "perplexity": {"alibi": ours, "transformers": peer, "transformers is": source},
    }
    report.write(arguments.out, "pretrained", results, text)
    blocks = arguments.out / "perplexity.dat"
    blocks.write_text(to_blocks(ours, peer))
    report.draw(Path(__file__).with_name("perplexity.gnuplot"), blocks, arguments.out / "perplexity.png")


if __name__ == "__main__":
    main()
