"""A small text encoder with its training loop, in numpy. It knows nothing of corpora, tokenizers or ONNX.

Tokens -> weighted mean of their vectors -> two layers -> a vector of length 1. Texts that belong together (what a
function does, and the notes about it) are drawn near each other, all others of a batch pushed away.
"""

from __future__ import annotations

import numpy as np

Params = dict[str, np.ndarray]
WIDTH, HIDDEN = 96, 192
BATCH, HEAT = 256, 0.08


def initial(counts: np.ndarray, rng: np.random.Generator) -> Params:
    """Start from latent semantic analysis: counts (texts, tokens) -> token vectors that tell texts apart."""
    seen = (counts > 0).sum(axis=0)
    rarity = np.log((len(counts) + 1) / (seen + 1)) + 0.1
    table = np.log1p(counts) * rarity
    table /= np.linalg.norm(table, axis=1, keepdims=True) + 1e-9
    # The right singular vectors, by way of the smaller side's eigenvectors.
    size, vectors = np.linalg.eigh(table.T @ table)
    vectors, size = vectors[:, -WIDTH:], np.sqrt(np.maximum(size[-WIDTH:], 0))
    return {
        "table": (vectors * np.sqrt(size) * 4).astype(np.float32),
        "weight": np.log(rarity).astype(np.float32),
        "w1": (rng.standard_normal((WIDTH, HIDDEN)) / np.sqrt(WIDTH)).astype(np.float32),
        "b1": np.zeros(HIDDEN, np.float32),
        "w2": (rng.standard_normal((HIDDEN, WIDTH)) * 0.1 / np.sqrt(HIDDEN)).astype(np.float32),
    }


def forward(params: Params, counts: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return the vectors of texts given as counts (texts, tokens), and what the gradient needs."""
    weighted = counts * np.exp(params["weight"])
    total = weighted.sum(axis=1, keepdims=True) + 1e-6
    share = weighted / total
    mean = share @ params["table"]
    hidden = np.tanh(mean @ params["w1"] + params["b1"])
    out = mean + hidden @ params["w2"]
    length = np.sqrt((out * out).sum(axis=1, keepdims=True)) + 1e-6
    return out / length, (share, mean, hidden, length)


def backward(params: Params, unit: np.ndarray, kept: tuple[np.ndarray, ...], grad: np.ndarray) -> Params:
    share, mean, hidden, length = kept
    d_out = (grad - unit * (grad * unit).sum(axis=1, keepdims=True)) / length
    d_hidden = d_out @ params["w2"].T * (1 - hidden * hidden)
    d_mean = d_out + d_hidden @ params["w1"].T
    d_share = d_mean @ params["table"].T
    d_weight = share * (d_share - (share * d_share).sum(axis=1, keepdims=True))
    return {
        "table": share.T @ d_mean, "weight": d_weight.sum(axis=0), "w1": mean.T @ d_hidden,
        "b1": d_hidden.sum(axis=0), "w2": hidden.T @ d_out,
    }  # fmt: skip


def gradients(params: Params, one: np.ndarray, other: np.ndarray) -> tuple[float, Params]:
    """Row n of ``one`` belongs to row n of ``other``: cross-entropy of finding it, in both directions."""
    a, kept_a = forward(params, one)
    b, kept_b = forward(params, other)
    scores = a @ b.T / HEAT
    loss, d_scores = 0.0, np.zeros_like(scores)
    for axis in (0, 1):
        chance = np.exp(scores - scores.max(axis=axis, keepdims=True))
        chance /= chance.sum(axis=axis, keepdims=True)
        loss -= float(np.log(np.diag(chance) + 1e-9).mean()) / 2
        d_scores += (chance - np.eye(len(a), dtype=np.float32)) / (2 * len(a) * HEAT)
    first, second = backward(params, a, kept_a, d_scores @ b), backward(params, b, kept_b, d_scores.T @ a)
    return loss, {name: first[name] + second[name] for name in params}


def train(one: np.ndarray, other: np.ndarray, *, epochs: int, seed: int, rate: float = 0.003) -> tuple[Params, float]:
    """Adam with a cosine-decayed step; returns the parameters and the last epoch's mean loss."""
    rng = np.random.default_rng(seed)
    params = initial(one + other, rng)
    mean = {name: np.zeros_like(value) for name, value in params.items()}
    square = {name: np.zeros_like(value) for name, value in params.items()}
    steps, step, last = epochs * (len(one) // BATCH), 0, 0.0
    for _ in range(epochs):
        order = rng.permutation(len(one))
        losses = []
        for start in range(0, len(one) - BATCH + 1, BATCH):
            pick = order[start : start + BATCH]
            # Words left out at random: what two texts have in common must not hang on one of them.
            views = [np.where(rng.random(part.shape, np.float32) < 0.7, part, 0) for part in (one[pick], other[pick])]
            loss, grads = gradients(params, *views)
            losses.append(loss)
            step += 1
            now = rate * 0.5 * (1 + np.cos(np.pi * step / steps))
            for name, grad in grads.items():
                mean[name] += 0.1 * (grad - mean[name])
                square[name] += 0.001 * (grad * grad - square[name])
                unbiased = mean[name] / (1 - 0.9**step)
                params[name] -= (now * unbiased / (np.sqrt(square[name] / (1 - 0.999**step)) + 1e-8)).astype(np.float32)
        last = float(np.mean(losses))
    return params, last
