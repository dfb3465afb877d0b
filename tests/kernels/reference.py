"""Attention and its gradients from the definition, in float64: one row, one head, one query at a time."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Reference:
    """`out` [B, S, H, K]; `lse` [B, H, S], -inf for a query without keys; `gradients` by the name of the argument."""

    out: np.ndarray
    lse: np.ndarray
    gradients: dict[str, np.ndarray]


def by_pairs(arrays: dict[str, np.ndarray], d_out: np.ndarray, d_lse: np.ndarray, *, q_offset: int | None = None,
             window: int | None = None, softcap: float | None = None, scale: float | None = None,
             segments: np.ndarray | None = None, q_segments: np.ndarray | None = None) -> Reference:  # fmt: skip
    """What attention of `arrays` (q, k, v and perhaps r, u, w) is, and the gradients of d_out . out + d_lse . lse."""
    x = {name: np.asarray(value, np.float64) for name, value in arrays.items()}
    q, k, v = x["q"], x["k"], x["v"]
    (batch, s, heads, size), (t, groups) = q.shape, k.shape[1:3]
    q_offset = t - s if q_offset is None else q_offset
    scale = 1 / np.sqrt(size) if scale is None else scale
    if segments is not None and q_segments is None:
        q_segments = segments[:, q_offset : q_offset + s]
    out, lse = np.zeros(q.shape), np.full((batch, heads, s), -np.inf)
    gradients = {name: np.zeros(value.shape) for name, value in x.items()}
    for b, h, i in np.ndindex(batch, heads, s):
        g, position = h // (heads // groups), q_offset + i
        keys = [j for j in range(t) if 0 <= position - j and (window is None or position - j < window)
                and (segments is None or segments[b, j] == q_segments[b, i])]  # fmt: skip
        if not keys:
            continue
        distances = position - np.array(keys)
        content, scores = q[b, i, h], np.zeros(len(keys))
        if "r" in x:
            rows = np.array([x["r"][len(x["r"]) - 1 - d, h] if d < len(x["r"]) else np.zeros(size) for d in distances])
            content = content + x["u"][h]
            scores = rows @ (q[b, i, h] + x["w"][h])
        scores = scale * (scores + k[b, keys, g] @ content)
        slopes = np.full(len(keys), scale)
        if softcap is not None:
            slopes = scale / np.cosh(scores / softcap) ** 2
            scores = softcap * np.tanh(scores / softcap)
        lse[b, h, i] = np.max(scores) + np.log(np.sum(np.exp(scores - np.max(scores))))
        weights = np.exp(scores - lse[b, h, i])
        out[b, i, h] = weights @ v[b, keys, g]
        d_scores = weights * ((v[b, keys, g] - out[b, i, h]) @ d_out[b, i, h] + d_lse[b, h, i]) * slopes
        gradients["v"][b, keys, g] += np.outer(weights, d_out[b, i, h])
        gradients["k"][b, keys, g] += np.outer(d_scores, content)
        gradients["q"][b, i, h] += d_scores @ k[b, keys, g]
        if "r" in x:
            gradients["u"][h] += d_scores @ k[b, keys, g]
            gradients["q"][b, i, h] += d_scores @ rows
            gradients["w"][h] += d_scores @ rows
            known = distances < len(x["r"])
            places = len(x["r"]) - 1 - distances[known]
            gradients["r"][places, h] += np.outer(d_scores[known], q[b, i, h] + x["w"][h])
    return Reference(out, lse, gradients)
