"""Prefill, generation and memory of a checkpoint in two programs, by turns."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import report
from programs import Programs


@dataclass
class Speed:
    """One program after one context. Lists have a number a repetition."""

    context: int  # tokens of the prompt
    program: str
    title: str
    prompt_seconds: list[float] = field(default_factory=list)
    token_seconds: list[float] = field(default_factory=list)  # of one more token
    prompt_attention: list[float] = field(default_factory=list)  # share of the time; of this library only
    token_attention: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)  # Finished.peak_bytes: loading, prefill and generation
    ids: list[int] = field(default_factory=list)  # generated
    reason: str = ""  # why it did not run


def _measure_ours(programs: Programs, speed: Speed, prompt: str, tokens: int, tolerance: Sequence[str]) -> None:
    finished = programs.ours("generate", "--ids", prompt, "--tokens", str(tokens), *tolerance)
    seconds = r"{}: (\d+) tokens, ([\d.]+) s, of which attention ([\d.]+) s"
    prefill, generation = (re.search(seconds.format(of), finished.errors) for of in ("prefill", "generation"))
    if finished.status != 0 or not prefill or not generation:
        speed.reason = finished.failure
        return
    speed.prompt_seconds.append(float(prefill[2]))
    speed.prompt_attention.append(float(prefill[3]) / float(prefill[2]))
    if int(generation[1]) < 2:
        speed.reason = "its first token ends the text, so that no other can be timed"
        return
    # The first token comes from the logits of the prompt.
    speed.token_seconds.append(float(generation[2]) / (int(generation[1]) - 1))
    speed.token_attention.append(float(generation[3]) / float(generation[2]))
    speed.peak_bytes.append(finished.peak_bytes)
    speed.ids = [int(token) for token in finished.output.split(",")]


def _measure_transformers(programs: Programs, speed: Speed, tokens: int) -> None:
    finished = programs.transformers("generate", "--context", str(speed.context), "--tokens", str(tokens))
    if finished.status != 0:
        speed.reason = finished.failure
        return
    result = json.loads(finished.output)
    if len(result["ids"]) < 2:
        speed.reason = "its first token ends the text, so that no other can be timed"
        return
    speed.prompt_seconds.append(result["prompt_seconds"])
    speed.token_seconds.append(result["seconds"] / (len(result["ids"]) - 1))
    speed.peak_bytes.append(finished.peak_bytes)
    speed.ids = result["ids"]


def _measure_context(programs: Programs, ids: Sequence[int], tokens: int, repetitions: int) -> list[Speed]:
    """Both programs after the prompt `ids`. Every other repetition takes them in reverse."""
    context, prompt = len(ids), ",".join(map(str, ids))
    default = Speed(context, "alibi", "pretrained, default")
    dense = Speed(context, "alibi_dense", "pretrained, every key")
    peer = Speed(context, "transformers", "transformers, eager")
    turns: list[tuple[Speed, Callable[[], None]]] = [
        (default, lambda: _measure_ours(programs, default, prompt, tokens, [])),
        (dense, lambda: _measure_ours(programs, dense, prompt, tokens, ["--tolerance", "0"])),
        (peer, lambda: _measure_transformers(programs, peer, tokens)),
    ]
    for repetition in range(repetitions):
        print(f"after {context:,} tokens: repetition {repetition + 1} of {repetitions}", flush=True)
        for speed, measure in turns if repetition % 2 == 0 else turns[::-1]:
            if not speed.reason:
                measure()
    return [default, dense, peer]


def measure_speed(programs: Programs, contexts: Sequence[int], tokens: int, repetitions: int) -> list[Speed]:
    """Prompts of these lengths, each continued greedily by `tokens` tokens."""
    ids = programs.ids(max(contexts))
    return [speed for context in contexts for speed in _measure_context(programs, ids[:context], tokens, repetitions)]


def _of(speeds: Sequence[Speed], context: int, program: str) -> Speed:
    return next(speed for speed in speeds if (speed.context, speed.program) == (context, program))


def _equal_tokens(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens are the same before the first that differs."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def speed_table(speeds: Sequence[Speed]) -> str:
    """One row a context and program; ratios of times are over `pretrained` by default. Below: what did not run."""
    rows, missing = [], []
    for speed in speeds:
        if speed.reason:
            missing.append(f"- {speed.title}, after {speed.context:,} tokens: {speed.reason}\n")
            continue
        default, peer = (_of(speeds, speed.context, program) for program in ("alibi", "transformers"))
        row = [f"{speed.context:,}", speed.title]
        for name in ("prompt_seconds", "token_seconds"):
            values, of_default = getattr(speed, name), getattr(default, name)
            median = report.median(values)
            row.append(f"{1 / median:.1f}" if name == "token_seconds" else report.seconds_text(median))
            row.append(report.percent(report.spread(values)))
            row.append(f"{median / report.median(of_default):.2f} ×" if of_default else "")
        row.append(f"{max(speed.peak_bytes) / 1e6:,.0f} MB")
        row.append(f"{_equal_tokens(speed.ids, peer.ids)} of {len(speed.ids)}" if peer.ids else "")
        rows.append(row)
    timed = ["prefill", "cv", "over default", "tokens/s", "cv", "over default"]
    table = report.table(["context", "program", *timed, "peak", "same tokens"], rows)
    return table + ("\n" if missing else "") + "".join(missing)


def attention_table(speeds: Sequence[Speed]) -> str:
    """Attention in `pretrained`: its time, its share of all, and what pruning saves of its time."""
    rows = []
    for context in dict.fromkeys(speed.context for speed in speeds):
        both = [_of(speeds, context, program) for program in ("alibi_dense", "alibi")]
        if any(speed.reason for speed in both):
            continue
        for title, part in (("prefill", "prompt"), ("one more token", "token")):
            times, cells = [], []
            for speed in both:
                seconds, shares = getattr(speed, f"{part}_seconds"), getattr(speed, f"{part}_attention")
                times.append(report.median([a * b for a, b in zip(seconds, shares, strict=True)]))
                cells.append(f"{report.seconds_text(times[-1])}, {report.percent(report.median(shares))}")
            saved = report.percent(1 - times[1] / times[0]) if times[0] else ""
            rows.append([f"{context:,}", title, *cells, saved])
    return report.table(["context", "of", "attention, every key", "attention, default", "pruning saves"], rows)
