#!/usr/bin/env python3
"""Writes golden/<model>/: tiny random BLOOM, MPT and Falcon checkpoints as transformers saves them, and beside each
`golden.safetensors` with what transformers computes with it in float32: logits of one sequence, greedy tokens behind its
first half, and logits of a batch padded on the left. Run by hand; needs torch, transformers 5 and safetensors."""
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from transformers import BloomConfig, BloomForCausalLM, FalconConfig, FalconForCausalLM, MptConfig, MptForCausalLM
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

FOLDER = pathlib.Path(__file__).parent / "golden"
VOCABULARY, LENGTH, GREEDY = 40, 70, 24  # longer than a tile of 64 keys
BATCH = (11, 4, 7)

NONE = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None, vocab_size=VOCABULARY)


def bloom(**changes):
    return BloomForCausalLM(BloomConfig(hidden_size=18, n_head=6, n_layer=2, **NONE, **changes))


def mpt():
    attention = dict(alibi=True, alibi_bias_max=16, clip_qkv=0.7, softmax_scale=0.5)
    model = MptForCausalLM(
        MptConfig(d_model=24, n_heads=3, n_layers=2, max_seq_len=128, attn_config=attention, **NONE))
    # Transformers 5.24 does not read alibi_bias_max; the authors' code (llm-foundry) does, and MPT-7B-StoryWriter has 16.
    model.transformer.build_mpt_alibi_tensor = lambda heads, length, device: build_mpt_alibi_tensor(
        heads, length, alibi_bias_max=16, device=device)
    return model


def falcon(**changes):
    # Transformers rounds slopes times positions to bfloat16: with 4 heads that is exact up to position 256.
    return FalconForCausalLM(
        FalconConfig(hidden_size=24, num_attention_heads=4, num_hidden_layers=2, ffn_hidden_size=32, alibi=True,
                     new_decoder_architecture=False, **NONE, **changes))


MODELS = {
    "bloom": (bloom, {}, torch.float32, "20KB"),
    "bloom_post_norm": (bloom, dict(apply_residual_connection_post_layernorm=True), torch.bfloat16, "1GB"),
    "mpt": (mpt, {}, torch.float16, "1GB"),
    "falcon_multi_query": (falcon, dict(multi_query=True, parallel_attn=True, bias=False), torch.bfloat16, "1GB"),
    "falcon_rw": (falcon, dict(multi_query=False, parallel_attn=False, bias=True), torch.bfloat16, "1GB"),
}


def randomise(model, dtype, generator):
    """Weights large enough for every part to show in the logits, and exact in the dtype that they are saved in."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 2:
            values = noise * (0.5 if "embed" in name or "wte" in name else 0.25)
        else:
            values = 0.2 * noise + (1 if name.endswith("weight") else 0)
        parameter.data = values.to(dtype).float()


@torch.no_grad()
def golden(model, generator):
    ids = torch.randint(VOCABULARY, (LENGTH,), generator=generator)
    greedy = ids[: LENGTH // 2]
    for _ in range(GREEDY):
        logits = model(greedy[None], use_cache=False).logits[0, -1]
        first, second = logits.topk(2).values.tolist()
        assert first - second > 1e-3, "too close to call"
        greedy = torch.cat([greedy, logits.argmax()[None]])
    batch = torch.zeros(len(BATCH), max(BATCH), dtype=torch.long)
    mask = torch.zeros_like(batch)
    for row, length in enumerate(BATCH):
        batch[row, -length:] = torch.randint(VOCABULARY, (length,), generator=generator)
        mask[row, -length:] = 1
    batch_logits = model(batch, attention_mask=mask, use_cache=False).logits * mask[:, :, None]
    return {
        "ids": ids.int(),
        "logits": model(ids[None], use_cache=False).logits[0],
        "greedy": greedy[LENGTH // 2:].int(),
        "batch.ids": batch.int(),
        "batch.lengths": torch.tensor(BATCH).int(),
        "batch.logits": batch_logits,
    }


def main():
    for seed, (name, (make, changes, dtype, shard)) in enumerate(MODELS.items()):
        folder = FOLDER / name
        shutil.rmtree(folder, ignore_errors=True)
        generator = torch.Generator().manual_seed(seed)
        model = make(**changes).float().eval()
        model.set_attn_implementation("eager")
        randomise(model, dtype, generator)
        tensors = golden(model, generator)
        model.to(dtype).save_pretrained(folder, max_shard_size=shard)
        (folder / "generation_config.json").unlink(missing_ok=True)
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "golden.safetensors")
        for file in folder.iterdir():
            file.chmod(0o644)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{name}: {size} bytes, largest logit {tensors['logits'].abs().max():.2f}")


if __name__ == "__main__":
    main()
