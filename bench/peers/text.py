"""The tokens that models are measured on."""

from __future__ import annotations

from array import array
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def own_text() -> str:
    """The documentation and the sources of this library: a text that is always there, 300,000 tokens or so."""
    paths = [*sorted(_ROOT.glob("include/**/*.md")), *sorted(_ROOT.glob("include/**/*.hpp"))]
    return "\n".join(path.read_text() for path in [_ROOT / "README.md", _ROOT / "bench/README.md", *paths])


def validation_file(model: Path) -> Path | None:
    """Held-out tokens that come with a checkpoint, ids of 16 bits, little endian."""
    path = model / "validation.u16"
    return path if path.exists() else None


def token_ids(model: Path) -> list[int]:
    """The held-out tokens of a checkpoint if it has some, else own_text() in its tokens."""
    path = validation_file(model)
    if path:
        return array("H", path.read_bytes()).tolist()
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(model / "tokenizer.json")).encode(own_text(), add_special_tokens=False).ids
