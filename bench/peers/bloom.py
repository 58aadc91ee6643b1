"""A BLOOM checkpoint in transformers, eager attention. Each command prints one line of JSON.

    bloom.py MODEL ids --context 8192
    bloom.py MODEL generate --context 8192 --tokens 64
    bloom.py MODEL perplexity --windows 512,4096 --limit 16384 --dtype bfloat16
    bloom.py MODEL qkv --context 16384 --out qkv.safetensors

Tokens are those of text.py.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BloomForCausalLM
from transformers.utils.logging import disable_progress_bar

from inputs import CannotRun, require_memory
from text import token_ids

_CHUNK = 512  # tokens that qkv reads at a time, and rows whose logits perplexity holds


def load(folder: Path, dtype: str) -> BloomForCausalLM:
    """The model in a type of torch, "float32"."""
    model = BloomForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="eager")
    return model.eval()


def generate(model: BloomForCausalLM, ids: list[int], tokens: int) -> dict[str, object]:
    """Greedy decoding as transformers' own `generate` does it: the prompt at once, logits of its last token only, then
    one token at a time over the cache, up to an end token. Without what `generate` adds to each step, so that it is no
    slower."""
    require_memory(20 * model.config.n_head * len(ids) ** 2, "eager attention, five arrays of all scores,")
    start = time.perf_counter()
    step = model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
    next_id = step.logits[:, -1].argmax(-1, keepdim=True)
    prompt_seconds = time.perf_counter() - start
    generated = [int(next_id)]
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    start = time.perf_counter()
    while len(generated) < tokens and generated[-1] not in ends:
        step = model(next_id, cache=step.cache, use_cache=True)
        next_id = step.logits[:, -1].argmax(-1, keepdim=True)
        generated.append(int(next_id))
    seconds = time.perf_counter() - start
    return {"prompt_seconds": prompt_seconds, "seconds": seconds, "ids": generated}


def perplexity(model: BloomForCausalLM, ids: list[int], windows: list[int], limit: int) -> dict[str, object]:
    """Per token, in windows that do not overlap, of the first `limit` predictions; losses in float32."""
    result: dict[str, object] = {}
    for window in windows:
        count = min(limit, len(ids) - 1) // window
        loss = 0.0
        for first in range(0, count * window, window):
            states = model.transformer(torch.tensor([ids[first : first + window]])).last_hidden_state[0]
            targets = torch.tensor(ids[first + 1 : first + window + 1])
            for rows, of_rows in zip(states.split(_CHUNK), targets.split(_CHUNK), strict=True):
                logits = model.lm_head(rows).float()
                loss += torch.nn.functional.cross_entropy(logits, of_rows, reduction="sum").item()
        result[str(window)] = math.exp(loss / (count * window))
    return result


def qkv(model: BloomForCausalLM, ids: list[int], out: Path) -> dict[str, object]:
    """Writes q, k and v of the middle layer, each [heads, tokens, head_dim]. A hook takes them from its projection. The
    layers behind it are dropped; tokens are read in chunks over the cache, because all scores would not fit."""
    layer = model.config.n_layer // 2
    model.transformer.h = model.transformer.h[: layer + 1]
    chunks: list[torch.Tensor] = []
    projection = model.transformer.h[layer].get_submodule("self_attention.query_key_value")
    projection.register_forward_hook(lambda module, arguments, output: chunks.append(output[0]))
    cache = None
    for chunk in torch.tensor([ids]).split(_CHUNK, dim=1):
        cache = model.transformer(chunk, cache=cache, use_cache=True).cache
    heads = model.config.n_head
    fused = torch.cat(chunks).view(len(ids), heads, 3, -1).permute(2, 1, 0, 3)  # [3, heads, tokens, head_dim]
    save_file({name: fused[i].contiguous() for i, name in enumerate("qkv")}, out)
    return {"layer": layer, "tokens": len(ids)}


def main() -> None:
    """Reads the command line and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("command", choices=["ids", "generate", "perplexity", "qkv"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--context", type=int, help="the first tokens of the text")
    parser.add_argument("--tokens", type=int, help="to generate")
    parser.add_argument("--windows", help="numbers of tokens, by commas")
    parser.add_argument("--limit", type=int, help="predictions")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, help="a safetensors file")
    arguments = parser.parse_args()

    disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    ids = token_ids(arguments.model)
    print(json.dumps(run(arguments, ids)))


def run(arguments: argparse.Namespace, ids: list[int]) -> dict[str, object]:
    """Runs one command on the tokens of the model's text."""
    start = ids[: arguments.context]
    if arguments.command == "ids":
        return {"ids": start}
    model = load(arguments.model, arguments.dtype)
    with torch.inference_mode():
        if arguments.command == "generate":
            return generate(model, start, arguments.tokens)
        if arguments.command == "qkv":
            return qkv(model, start, arguments.out)
        windows = [int(window) for window in arguments.windows.split(",")]
        return perplexity(model, ids, windows, arguments.limit)


if __name__ == "__main__":
    try:
        main()
    except CannotRun as reason:
        sys.exit(str(reason))
