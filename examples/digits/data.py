"""The handwritten digits bundled with scikit-learn, split once for training and for every measurement.

1797 real 8x8 grey images, pixels 0..16. It knows nothing of models or servers.
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEED = 20
HELD_OUT = 360


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training images, held-out images, training labels and held-out labels.

    Images are float32 of shape (n, 1, 8, 8), labels int64 of shape (n,). The split is the same on every call.
    """
    digits = load_digits()
    images = digits.images.astype(np.float32)[:, None, :, :]
    labels = digits.target.astype(np.int64)
    return tuple(train_test_split(images, labels, test_size=HELD_OUT, random_state=SEED, stratify=labels))
