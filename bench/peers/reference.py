"""Attention and its gradients by their definition, in double.

    s_ij = q_i·k_j / sqrt(head_dim) - m |p_i - j|,  j <= p_i
    o_i  = sum_j softmax_j(s_ij) v_j

Shares no code with what it checks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from inputs import Array, Inputs

Double = npt.NDArray[np.float64]


def _softmax(q: Double, k: Double, positions: npt.NDArray[np.int64], slope: float) -> Double:
    """Probabilities of one head, [rows, keys], of q [rows, head_dim] at `positions` [rows] and k [keys, head_dim]."""
    distance = positions[:, None] - np.arange(len(k))
    scores = q @ k.T / np.sqrt(q.shape[1]) - slope * distance
    scores[distance < 0] = -np.inf
    scores -= scores.max(axis=1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=1, keepdims=True)
    return scores


def output_rows(inputs: Inputs, slopes: Array, rows: npt.NDArray[np.int64]) -> Double:
    """The output of some queries of every head, [heads, rows, head_dim]."""
    positions = rows + inputs.keys - inputs.queries
    result = np.empty((inputs.heads, len(rows), inputs.head_dim))
    for head, slope in enumerate(slopes):
        q, k, v = (x[head].astype(np.float64) for x in (inputs.q[:, rows], inputs.k, inputs.v))
        result[head] = _softmax(q, k, positions, float(slope)) @ v
    return result


def gradients(inputs: Inputs, slopes: Array) -> tuple[Double, Double, Double, Double]:
    """The output and the gradients of q, k and v, each [heads, tokens, head_dim]."""
    positions = np.arange(inputs.queries) + inputs.keys - inputs.queries
    scale = 1 / np.sqrt(inputs.head_dim)
    output, grad_q, grad_k, grad_v = (np.empty(x.shape) for x in (inputs.q, inputs.q, inputs.k, inputs.v))
    for head, slope in enumerate(slopes):
        q, k, v, grad = (x[head].astype(np.float64) for x in (inputs.q, inputs.k, inputs.v, inputs.grad_output))
        p = _softmax(q, k, positions, float(slope))
        output[head] = p @ v
        grad_v[head] = p.T @ grad
        grad_scores = p * (grad @ v.T - (grad * output[head]).sum(axis=1, keepdims=True))
        grad_q[head] = scale * grad_scores @ k
        grad_k[head] = scale * grad_scores.T @ q
    return output, grad_q, grad_k, grad_v
