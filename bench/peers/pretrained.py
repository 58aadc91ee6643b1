"""A BLOOM checkpoint in `pretrained` (examples/pretrained) beside transformers' BloomForCausalLM, eager attention.

Speed and memory: the two take turns, float32, on as many threads. Each run is a process of its own that reads a prompt
at once and continues it greedily. Perplexity by context length: this library in three types, beside transformers.
Writes pretrained.json, pretrained.md and perplexity.png. Run by run.sh.

This process imports nothing large: what it holds when it starts a program counts for that program's peak memory.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import report
from perplexity import measure_perplexity, perplexity_table, to_blocks
from programs import Programs
from speed import attention_table, measure_speed, speed_table


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    contexts: tuple[int, ...]  # tokens of the prompts
    tokens: int  # generated behind each
    repetitions: int
    largest_window: int  # and predictions scored, where transformers' perplexity is known
    predictions: int | None  # scored, transformers' too; None: read perplexity.json if it is there


FULL = Settings(contexts=(16, 8192), tokens=64, repetitions=5, largest_window=65536, predictions=None)
QUICK = Settings(contexts=(16, 512), tokens=8, repetitions=2, largest_window=1024, predictions=1024)


def main() -> None:
    """Measures, and writes what was found."""
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
    speeds = measure_speed(programs, settings.contexts, settings.tokens, settings.repetitions)
    ours, peer, source = measure_perplexity(programs, arguments.out, settings.largest_window, settings.predictions)

    text = f"""A BLOOM checkpoint, float32. {report.conditions(about)} Medians of {settings.repetitions} runs by turns.

{speed_table(speeds)}
Attention in pretrained, time and share of all:

{attention_table(speeds)}
Perplexity by context; transformers {source}:

{perplexity_table(ours, peer)}"""
    results = {
        "machine": about,
        "speed": [asdict(speed) for speed in speeds],
        "perplexity": {"alibi": ours, "transformers": peer, "source of transformers": source},
    }
    report.write(arguments.out, "pretrained", results, text)
    blocks = arguments.out / "perplexity.dat"
    blocks.write_text(to_blocks(ours, peer))
    report.draw(Path(__file__).with_name("perplexity.gnuplot"), blocks, arguments.out / "perplexity.png")


if __name__ == "__main__":
    main()
