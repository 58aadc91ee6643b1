"""The library and its peers, behind one interface. Every peer reads the same arrays (inputs.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from inputs import CannotRun, Case, Inputs, Work, require_memory
from library import Library

Run = Callable[[], tuple[npt.ArrayLike, ...]]
"""One call. It returns the output, [heads, queries, head_dim] or with a batch of 1 before it; forward and backward also
the gradients of q, k and v."""


class Peer(Protocol):
    """One implementation of attention."""

    @property
    def name(self) -> str:
        """In JSON and in the data of the picture."""

    @property
    def title(self) -> str:
        """In tables."""

    @property
    def biased(self) -> bool:
        """With the bias of ALiBi, or without any."""

    def prepare(self, case: Case, inputs: Inputs) -> Run:
        """Everything that is made once and not timed. Raises CannotRun."""


@dataclass(frozen=True)
class Alibi:
    """This library, into arrays and a workspace that are there; decode reads a KvCache."""

    library: Library
    name: str
    title: str
    tolerance: float | None  # None: the default
    biased: bool = True

    def prepare(self, case: Case, inputs: Inputs) -> Run:
        prepare = {
            Work.FORWARD: self.library.forward,
            Work.DECODE: self.library.decode,
            Work.FORWARD_BACKWARD: self.library.forward_backward,
        }[case.work]
        return prepare(inputs, self.tolerance)


def _tensors(inputs: Inputs) -> list[torch.Tensor]:
    """q, k and v with a batch of 1, in the memory of the arrays."""
    return [torch.from_numpy(x)[None] for x in (inputs.q, inputs.k, inputs.v)]


def _torch_run(case: Case, inputs: Inputs, attend: Callable[..., torch.Tensor]) -> Run:
    """A call of attend(q, k, v), and of autograd where the case needs it."""
    tensors = _tensors(inputs)
    if case.work is not Work.FORWARD_BACKWARD:
        return lambda: (attend(*tensors),)
    grad_output = torch.from_numpy(inputs.grad_output)[None]
    for tensor in tensors:
        tensor.requires_grad_()

    def run() -> tuple[npt.ArrayLike, ...]:
        output = attend(*tensors)
        return output.detach(), *torch.autograd.grad(output, tensors, grad_output)

    return run


@dataclass(frozen=True)
class TorchWithBias:
    """PyTorch's scaled_dot_product_attention; bias and causal mask are one tensor, as its arguments demand."""

    name: str = "torch_bias"
    title: str = "PyTorch, bias tensor"
    biased: bool = True

    def prepare(self, case: Case, inputs: Inputs) -> Run:
        bias = torch.from_numpy(inputs.bias)[None]
        return _torch_run(case, inputs, lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=bias))


@dataclass(frozen=True)
class TorchWithoutBias:
    """PyTorch's scaled_dot_product_attention without any bias: what the bias costs it."""

    name: str = "torch_none"
    title: str = "PyTorch, no bias"
    biased: bool = False

    def prepare(self, case: Case, inputs: Inputs) -> Run:
        causal = case.queries > 1  # PyTorch aligns its causal mask at the top left
        return _torch_run(case, inputs, lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=causal))


@dataclass(frozen=True)
class TorchFlex:
    """PyTorch's FlexAttention, compiled for the shapes of the case: ALiBi as score_mod, causality as block mask."""

    name: str = "torch_flex"
    title: str = "FlexAttention, compiled"
    biased: bool = True

    def prepare(self, case: Case, inputs: Inputs) -> Run:
        offset = inputs.keys - inputs.queries
        slopes = torch.from_numpy(inputs.slopes)

        def add_bias(score, batch, head, query, key):  # noqa: ANN001, ANN202 (traced by PyTorch)
            return score - slopes[head] * (query + offset - key)

        def sees(batch, head, query, key):  # noqa: ANN001, ANN202 (traced by PyTorch)
            return query + offset >= key

        require_memory(14 * inputs.queries * inputs.keys, "making the block mask")
        block_mask = create_block_mask(sees, None, None, inputs.queries, inputs.keys, device="cpu")
        torch._dynamo.reset()  # each case compiles anew: a limit on recompilations would end in an uncompiled call
        compiled = torch.compile(flex_attention, dynamic=False)
        return _torch_run(case, inputs, lambda q, k, v: compiled(q, k, v, score_mod=add_bias, block_mask=block_mask))


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime's Attention operator; bias and causal mask are its attn_mask."""

    threads: int
    name: str = "onnxruntime"
    title: str = "ONNX Runtime, bias tensor"
    biased: bool = True

    def prepare(self, case: Case, inputs: Inputs) -> Run:
        if case.work is Work.FORWARD_BACKWARD:
            raise CannotRun("it has no gradients: it runs inference only")
        feeds = {"q": inputs.q, "k": inputs.k, "v": inputs.v, "bias": inputs.bias}
        require_memory(inputs.scores_bytes, "the array of all scores")
        session = onnxruntime.InferenceSession(self._model(inputs), self._options(), providers=["CPUExecutionProvider"])
        batch = {name: array[None] for name, array in feeds.items()}
        return lambda: tuple(session.run(None, batch))

    def _options(self) -> onnxruntime.SessionOptions:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # while others are timed
        return options

    @staticmethod
    def _model(inputs: Inputs) -> bytes:
        """A graph of one node."""

        def tensor(name: str, *shape: int) -> onnx.ValueInfoProto:
            return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, inputs.heads, *shape])

        queries, keys, head_dim = inputs.queries, inputs.keys, inputs.head_dim
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("Attention", ["q", "k", "v", "bias"], ["output"])],
            "attention",
            [
                tensor("q", queries, head_dim),
                tensor("k", keys, head_dim),
                tensor("v", keys, head_dim),
                tensor("bias", queries, keys),
            ],
            [tensor("output", queries, head_dim)],
        )
        # The first operator set that has Attention, and the file version that goes with it.
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=11)
        return model.SerializeToString()


def all_peers(library: Library, threads: int) -> list[Peer]:
    """In the order of tables."""
    return [
        Alibi(library, "alibi", "alibi, default", None),
        Alibi(library, "alibi_dense", "alibi, every key", 0),
        TorchWithBias(),
        TorchFlex(),
        OnnxRuntime(threads),
        TorchWithoutBias(),
    ]
