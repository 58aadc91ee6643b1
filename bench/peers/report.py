"""What both parts report: medians and spreads, tables, JSON, pictures, and the machine."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "transformers", "onnxruntime", "numpy")


def median(values: Sequence[float]) -> float:
    """The middle of the values, or the mean of the two in the middle."""
    return statistics.median(values)


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over mean; None for a single value."""
    return statistics.stdev(values) / statistics.mean(values) if len(values) > 1 else None


def percent(share: float | None) -> str:
    """One decimal; None is empty."""
    return "" if share is None else f"{100 * share:.1f} %"


def seconds_text(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}" if seconds < 1000 * unit else f"{seconds / unit:.0f} {name}"
    return f"{seconds * 1e9:.0f} ns"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up, so that it is read as it is in a terminal too."""
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (columns, *rows)]
    lines.insert(1, ["-" * width for width in widths])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def machine(threads: int) -> dict[str, object]:
    """The conditions of a run."""
    processors = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": processors[0].split(": ", 1)[1] if processors else "unknown",
        "cores": os.cpu_count(),
        "threads": threads,
        "versions": {package: version(package) for package in PACKAGES},
    }


def conditions(about: dict[str, object]) -> str:
    """One sentence for a table."""
    versions = about["versions"]
    assert isinstance(versions, dict)
    packages = ", ".join(f"{package} {number}" for package, number in versions.items())
    return f"{about['processor']}, {about['cores']} cores, {about['threads']} thread(s); {packages}."


def write(folder: Path, name: str, results: Mapping[str, object], text: str) -> None:
    """Writes NAME.json and NAME.md, and prints the latter."""
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text)
    print(text, flush=True)


def draw(script: Path, data: Path, png: Path) -> None:
    """Runs a gnuplot script, which reads `table` and draws into `png`. No incomplete picture remains."""
    part = png.with_suffix(".png.part")
    subprocess.run(
        ["gnuplot", "--default-settings", "-e", f"table = '{data}'; png = '{part}'", str(script)],
        check=True,
    )
    part.rename(png)
    print(f"Drew {png}", flush=True)
