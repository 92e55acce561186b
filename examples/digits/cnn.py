"""A small convolutional network with its training loop, in numpy. It knows nothing of data sets or ONNX.

(n, 1, 8, 8) -> conv 3x3 x16, ReLU, max pool 2 -> conv 3x3 x32, ReLU, max pool 2 -> dense -> 10 scores.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Params = dict[str, np.ndarray]
PIXEL_MAX = 16.0
FILTERS = (16, 32)
CLASSES = 10


def initial(rng: np.random.Generator) -> Params:
    """He-scaled weights; convolution weights are (out, in, 3, 3) as ONNX wants them, dense is (features, classes)."""

    def he(*shape: int, fan_in: int) -> np.ndarray:
        return (rng.standard_normal(shape) * np.sqrt(2.0 / fan_in)).astype(np.float32)

    first, second = FILTERS
    features = second * 2 * 2
    return {
        "w1": he(first, 1, 3, 3, fan_in=9),
        "b1": np.zeros(first, np.float32),
        "w2": he(second, first, 3, 3, fan_in=first * 9),
        "b2": np.zeros(second, np.float32),
        "w3": he(features, CLASSES, fan_in=features),
        "b3": np.zeros(CLASSES, np.float32),
    }


def windows(x: np.ndarray) -> np.ndarray:
    """3x3 neighbourhoods with zero padding: (n, c, h, w) -> (n * h * w, c * 9)."""
    n, c, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    view = sliding_window_view(padded, (3, 3), axis=(2, 3))
    return view.transpose(0, 2, 3, 1, 4, 5).reshape(n * h * w, c * 9)


def conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n, _, h, w = x.shape
    columns = windows(x)
    out = columns @ weight.reshape(len(weight), -1).T + bias
    return out.reshape(n, h, w, -1).transpose(0, 3, 1, 2), columns


def conv_back(
    grad: np.ndarray, columns: np.ndarray, weight: np.ndarray, shape: tuple[int, ...] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Gradients of weight and bias, and of the input when ``shape`` (the input's) is given."""
    flat = grad.transpose(0, 2, 3, 1).reshape(-1, len(weight))
    d_weight = (flat.T @ columns).reshape(weight.shape)
    d_bias = flat.sum(axis=0)
    if shape is None:
        return d_weight, d_bias, None
    n, c, h, w = shape
    spread = (flat @ weight.reshape(len(weight), -1)).reshape(n, h, w, c, 3, 3)
    padded = np.zeros((n, c, h + 2, w + 2), np.float32)
    for row in range(3):
        for column in range(3):
            padded[:, :, row : row + h, column : column + w] += spread[..., row, column].transpose(0, 3, 1, 2)
    return d_weight, d_bias, padded[:, :, 1:-1, 1:-1]


def pool(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """2x2 maximum, and which element of each cell it was (one-hot, ties to the first)."""
    n, c, h, w = x.shape
    cells = x.reshape(n, c, h // 2, 2, w // 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(n, c, h // 2, w // 2, 4)
    return cells.max(axis=-1), np.eye(4, dtype=np.float32)[cells.argmax(axis=-1)]


def pool_back(grad: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    n, c, h, w = grad.shape
    cells = (grad[..., None] * chosen).reshape(n, c, h, w, 2, 2)
    return cells.transpose(0, 1, 2, 4, 3, 5).reshape(n, c, h * 2, w * 2)


def gradients(params: Params, images: np.ndarray, labels: np.ndarray) -> tuple[float, Params]:
    """Cross-entropy loss of one batch and its gradient for every parameter."""
    x = images / np.float32(PIXEL_MAX)
    a1, c1 = conv(x, params["w1"], params["b1"])
    p1, m1 = pool(np.maximum(a1, 0))
    a2, c2 = conv(p1, params["w2"], params["b2"])
    p2, m2 = pool(np.maximum(a2, 0))
    flat = p2.reshape(len(x), -1)
    logits = flat @ params["w3"] + params["b3"]
    logits -= logits.max(axis=1, keepdims=True)
    scores = np.exp(logits)
    scores /= scores.sum(axis=1, keepdims=True)
    rows = np.arange(len(x))
    loss = float(-np.log(scores[rows, labels] + 1e-9).mean())

    d_logits = scores
    d_logits[rows, labels] -= 1
    d_logits /= len(x)
    d_p2 = (d_logits @ params["w3"].T).reshape(p2.shape)
    d_w2, d_b2, d_p1 = conv_back(pool_back(d_p2, m2) * (a2 > 0), c2, params["w2"], p1.shape)
    d_w1, d_b1, _ = conv_back(pool_back(d_p1, m1) * (a1 > 0), c1, params["w1"], None)
    grads = {"w1": d_w1, "b1": d_b1, "w2": d_w2, "b2": d_b2, "w3": flat.T @ d_logits, "b3": d_logits.sum(axis=0)}
    return loss, grads


def train(images: np.ndarray, labels: np.ndarray, *, epochs: int, seed: int, batch: int = 32) -> tuple[Params, float]:
    """Adam with a cosine-decayed step; returns the parameters and the last epoch's mean loss."""
    rng = np.random.default_rng(seed)
    params = initial(rng)
    mean = {name: np.zeros_like(value) for name, value in params.items()}
    square = {name: np.zeros_like(value) for name, value in params.items()}
    steps = epochs * (len(images) // batch)
    step, last = 0, 0.0
    for _ in range(epochs):
        order = rng.permutation(len(images))
        losses = []
        for start in range(0, len(images) - batch + 1, batch):
            pick = order[start : start + batch]
            loss, grads = gradients(params, images[pick], labels[pick])
            losses.append(loss)
            step += 1
            rate = 0.004 * 0.5 * (1 + np.cos(np.pi * step / steps))
            for name, grad in grads.items():
                mean[name] += 0.1 * (grad - mean[name])
                square[name] += 0.001 * (grad * grad - square[name])
                unbiased = mean[name] / (1 - 0.9**step)
                scale = np.sqrt(square[name] / (1 - 0.999**step)) + 1e-8
                params[name] -= (rate * unbiased / scale).astype(np.float32)
        last = float(np.mean(losses))
    return params, last
