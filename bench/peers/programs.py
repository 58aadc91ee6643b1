"""The two programs that run a checkpoint, each run in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finished:
    """A program that has ended."""

    output: str
    errors: str
    status: int
    peak_bytes: int  # largest resident memory, as the kernel counts it (ru_maxrss)

    @property
    def failure(self) -> str:
        """Why it failed, in a line."""
        if self.status < 0:
            return f"ended by signal {-self.status}"
        return (self.errors.strip().splitlines() or [f"status {self.status}"])[-1]


def run(command: Sequence[str | Path]) -> Finished:
    """Runs a program. Its peak memory is at least that of this process when it starts, which is small."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        texts = output.read().decode(), errors.read().decode(errors="replace")
    return Finished(*texts, process.returncode, 1024 * usage.ru_maxrss)


@dataclass(frozen=True)
class Programs:
    """How they are called on one checkpoint, on `threads` threads unless a call says otherwise."""

    pretrained: Path
    model: Path
    threads: int

    def ours(self, command: str, *options: str | Path, threads: int | None = None) -> Finished:
        """Runs `pretrained` (examples/pretrained)."""
        return run([self.pretrained, self.model, command, "--threads", str(threads or self.threads), *options])

    def transformers(self, command: str, *options: str | Path, threads: int | None = None) -> Finished:
        """Runs bloom.py."""
        bloom = Path(__file__).with_name("bloom.py")
        return run([sys.executable, bloom, self.model, command, "--threads", str(threads or self.threads), *options])

    def ids(self, context: int) -> list[int]:
        """The first tokens of the model's text."""
        tokens = self.transformers("ids", "--context", str(context))
        if tokens.status != 0:
            raise SystemExit(f"{self.model}: its text cannot be read: {tokens.failure}")
        return json.loads(tokens.output)["ids"]
