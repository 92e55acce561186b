"""Train a logistic regression on breast cancer data: python examples/backend_template/train.py [model.npz].

The scaling of the features is folded into the weights, so that clients send the values as they were measured.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

TARGET = Path(__file__).resolve().parent / "models" / "tumours" / "1" / "model.npz"
SEED = 7


def split() -> tuple[np.ndarray, ...]:
    """Return features for training and held out, then the names of their classes."""
    found = load_breast_cancer()
    labels = found.target_names[found.target]
    return tuple(train_test_split(found.data, labels, test_size=169, random_state=SEED, stratify=labels))


def train() -> dict[str, np.ndarray]:
    features, _, labels, _ = split()
    scaler = StandardScaler().fit(features)
    model = LogisticRegression().fit(scaler.transform(features), labels)
    # Two classes have one column of weights: that of the second, the first's score is 0.
    weights = np.concatenate([np.zeros_like(model.coef_), model.coef_]).T / scaler.scale_[:, None]
    bias = np.array([0.0, model.intercept_[0]]) - scaler.mean_ @ weights
    return {"weights": weights, "bias": bias, "classes": model.classes_.astype(str)}


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez(target, **train())
    print(f"wrote {target.name}")


if __name__ == "__main__":
    main()
