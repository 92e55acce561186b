"""Train two forests with scikit-learn and write them for the FIL backend: python examples/trees/train.py [models].

wine: three classes of wine by 13 measures. progression: how far diabetes went on in a year, by 10 measures.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import treelite
from sklearn.datasets import load_diabetes, load_wine
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
from sklearn.model_selection import train_test_split

MODELS = Path(__file__).resolve().parent / "models"
SEED = 5


def split(data: Any) -> tuple[np.ndarray, ...]:
    """Return features and targets for training and held-out ones. FP32, which is what the server takes."""
    features = data.data.astype(np.float32)
    made = train_test_split(features, data.target, test_size=0.3, random_state=SEED)
    return made[0], made[2], made[1], made[3]


def wine() -> tuple[GradientBoostingClassifier, np.ndarray, np.ndarray]:
    """Return the classifier, held-out features and their classes."""
    features, classes, *held = split(load_wine())
    return GradientBoostingClassifier(n_estimators=60, random_state=SEED).fit(features, classes), *held


def progression() -> tuple[GradientBoostingRegressor, np.ndarray, np.ndarray]:
    """Return the regressor, held-out features and their targets."""
    features, values, *held = split(load_diabetes())
    model = GradientBoostingRegressor(n_estimators=80, max_depth=2, random_state=SEED)
    return model.fit(features, values), *held


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else MODELS
    for name, train in (("wine", wine), ("progression.fil", progression)):
        (target / name / "1").mkdir(parents=True, exist_ok=True)
        # Nothing of it runs when it is read, as a pickle's content would.
        treelite.sklearn.import_model(train()[0]).serialize(str(target / name / "1" / "checkpoint.tl"))
    print(f"trees: wrote wine and progression.fil with treelite {treelite.__version__}")


if __name__ == "__main__":
    main()
