"""A voice-activity network with memory, and its training loop, in numpy. It knows nothing of recordings or ONNX.

One frame of 256 samples in, the probability of speech out. Two things are carried from frame to frame: the frame before
(windows overlap by half) and the state of a recurrent layer (GRU). Log energies of 24 bands are its input.
"""

from __future__ import annotations

import numpy as np

FRAME, BANDS, HIDDEN = 256, 24, 32
WINDOW = 2 * FRAME
Params = dict[str, np.ndarray]


def spectrum() -> Params:
    """Fixed matrices: a windowed Fourier transform (512 samples -> 257 cosine and sine parts) and the bands."""
    n, k = np.arange(WINDOW)[:, None], np.arange(FRAME + 1)[None, :]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / WINDOW)
    # Bands are as wide as the ear's: even steps of the mel scale.
    edges = 700 * (
        10 ** (np.linspace(2595 * np.log10(1 + 60 / 700), 2595 * np.log10(1 + 7600 / 700), BANDS + 2) / 2595) - 1
    )
    frequency = k[0] * 8000 / FRAME
    rise = (frequency[:, None] - edges[None, :-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[None, 2:] - frequency[:, None]) / (edges[2:] - edges[1:-1])
    return {
        "cosine": (window * np.cos(2 * np.pi * n * k / WINDOW)).astype(np.float32),
        "sine": (window * np.sin(2 * np.pi * n * k / WINDOW)).astype(np.float32),
        "bands": np.maximum(0, np.minimum(rise, fall)).astype(np.float32),
    }


def energies(samples: np.ndarray, fixed: Params) -> np.ndarray:
    """Return (frames, bands) log energies; the frame before the first is silence."""
    padded = np.concatenate([np.zeros(FRAME, np.float32), samples])
    windows = np.stack([padded[i : i + WINDOW] for i in range(0, len(samples), FRAME)])
    power = (windows @ fixed["cosine"]) ** 2 + (windows @ fixed["sine"]) ** 2
    return np.log(power @ fixed["bands"] + np.float32(1e-4))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def initial(rng: np.random.Generator) -> Params:
    def uniform(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, shape).astype(np.float32) / np.float32(np.sqrt(HIDDEN))

    return {
        "wx": uniform(BANDS, 3 * HIDDEN), "wh": uniform(HIDDEN, 3 * HIDDEN), "b": np.zeros(3 * HIDDEN, np.float32),
        "wo": uniform(HIDDEN, 1), "bo": np.zeros(1, np.float32),
    }  # fmt: skip


def gates(p: Params, x: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, ...]:
    """One step: update gate, reset gate, candidate, and the candidate's recurrent part before the reset gate."""
    a, r = x @ p["wx"] + p["b"], h @ p["wh"]
    z = sigmoid(a[:, :HIDDEN] + r[:, :HIDDEN])
    g = sigmoid(a[:, HIDDEN : 2 * HIDDEN] + r[:, HIDDEN : 2 * HIDDEN])
    u = r[:, 2 * HIDDEN :]
    return z, g, np.tanh(a[:, 2 * HIDDEN :] + g * u), u


def loss_and_gradients(p: Params, x: np.ndarray, y: np.ndarray) -> tuple[float, Params]:
    """Mean cross entropy of (batch, time, bands) and (batch, time), and its gradients through time."""
    batch, steps, _ = x.shape
    h = np.zeros((batch, HIDDEN), np.float32)
    kept = []
    for t in range(steps):
        z, g, c, u = gates(p, x[:, t], h)
        kept.append((h, z, g, c, u))
        h = z * h + (1 - z) * c
        kept[-1] += (h, sigmoid(h @ p["wo"] + p["bo"])[:, 0])
    d = {name: np.zeros_like(value) for name, value in p.items()}
    total, dh = 0.0, np.zeros_like(h)
    for t in reversed(range(steps)):
        before, z, g, c, u, after, q = kept[t]
        total -= float(np.mean(y[:, t] * np.log(q + 1e-7) + (1 - y[:, t]) * np.log(1 - q + 1e-7)))
        e = ((q - y[:, t]) / (batch * steps))[:, None].astype(np.float32)
        d["wo"] += after.T @ e
        d["bo"] += e.sum(axis=0)
        dh = dh + e @ p["wo"].T
        dz = dh * (before - c) * z * (1 - z)
        dc = dh * (1 - z) * (1 - c * c)
        dg = dc * u * g * (1 - g)
        da = np.concatenate([dz, dg, dc], axis=1)
        dr = np.concatenate([dz, dg, dc * g], axis=1)
        d["wx"] += x[:, t].T @ da
        d["b"] += da.sum(axis=0)
        d["wh"] += before.T @ dr
        dh = dh * z + dr @ p["wh"].T
    return total / steps, d


def train(
    x: np.ndarray, y: np.ndarray, *, epochs: int, seed: int, batch: int = 32, rate: float = 0.01
) -> tuple[Params, float]:
    """Adam with a falling rate on (recordings, frames, bands) and (recordings, frames); return weights and loss."""
    rng = np.random.default_rng(seed)
    p = initial(rng)
    mean, square = ({k: np.zeros_like(v) for k, v in p.items()} for _ in range(2))
    step, loss = 0, 0.0
    for epoch in range(epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x), batch):
            chosen = order[start : start + batch]
            loss, d = loss_and_gradients(p, x[chosen], y[chosen])
            scale = min(1.0, 1.0 / (np.sqrt(sum(float(np.sum(v * v)) for v in d.values())) + 1e-9))
            step += 1
            for k, v in d.items():
                mean[k] += 0.1 * (scale * v - mean[k])
                square[k] += 0.01 * ((scale * v) ** 2 - square[k])
                corrected = mean[k] / (1 - 0.9**step) / (np.sqrt(square[k] / (1 - 0.99**step)) + 1e-8)
                p[k] -= (rate * (1 - epoch / epochs) * corrected).astype(np.float32)
    return p, loss
