"""Compare the served forests with scikit-learn's own predictions on held-out rows: python examples/trees/client.py.

Exit code 1 when a prediction differs by more than FP32 rounds.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
from train import progression, wine
from tritonclient import grpc, http


def ask(module: Any, url: str, model: str, features: np.ndarray) -> np.ndarray:
    """Return the scores of all rows, sent one by one and at once, so that the server makes batches of them."""
    client = module.InferenceServerClient(url, **({"concurrency": 16} if module is http else {}))
    waiting = []
    for row in features[:, None]:
        tensor = module.InferInput("input__0", list(row.shape), "FP32")
        tensor.set_data_from_numpy(row)
        waiting.append(client.async_infer(model, [tensor]) if module is http else client.infer(model, [tensor]))
    answers = [one.get_result() if module is http else one for one in waiting]
    return np.concatenate([answer.as_numpy("output__0") for answer in answers])


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--http", default="127.0.0.1:8000")
    options.add_argument("--grpc", default="127.0.0.1:8001")
    given = options.parse_args()
    differs = False
    for protocol, module, url in (("HTTP", http, given.http), ("gRPC", grpc, given.grpc)):
        model, features, classes = wine()
        served, own = ask(module, url, "wine", features), model.predict_proba(features)
        right = (served.argmax(axis=1) == classes).mean()
        most = np.abs(served - own).max()
        print(f"{protocol}: wine {right:.1%} right of {len(classes)}, largest difference of a probability {most:.1e}")
        differs |= most > 1e-6 or (served.argmax(axis=1) != model.predict(features)).any()

        model, features, values = progression()
        served, own = ask(module, url, "progression.fil", features)[:, 0], model.predict(features)
        most = np.abs(served / own - 1).max()
        error = np.abs(served - values).mean() / np.abs(values - values.mean()).mean()
        print(f"{protocol}: progression {error:.0%} of the error of a guess, largest relative difference {most:.1e}")
        differs |= most > 1e-5
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
