"""Compares the logits of `pretrained` with those of Python's transformers, float32, on a BLOOM checkpoint.

    python3 tests/pretrained/compare_with_transformers.py build/release/examples/pretrained/pretrained MODEL [--tokens 300]

Needs torch, transformers and safetensors. Prints the largest difference, and fails if it exceeds --tolerance times the
largest logit. The other families differ where examples/guides/checkpoints.md says so.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import BloomForCausalLM


def logits_of_pretrained(program: str, model: str, ids: list[int]) -> torch.Tensor:
    """The logits of one sequence, [tokens, vocabulary]."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.safetensors"
        text = ",".join(map(str, ids))
        subprocess.run([program, model, "logits", "--ids", text, "--out", str(out)], check=True)
        return load_file(out)["logits"][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    arguments = parser.parse_args()

    model = BloomForCausalLM.from_pretrained(arguments.model, dtype=torch.float32, attn_implementation="eager")
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(model.config.vocab_size, (arguments.tokens,), generator=generator).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
    difference = (logits_of_pretrained(arguments.program, arguments.model, ids) - expected).abs().max().item()
    largest = expected.abs().max().item()
    print(f"{arguments.tokens} tokens, logits up to {largest:.2f}: the largest difference is {difference:.1e}")
    if not difference <= arguments.tolerance * largest:
        sys.exit(f"expected at most {arguments.tolerance * largest:.1e}")


if __name__ == "__main__":
    main()
