"""Ask a running server about held-out tumours, over HTTP and gRPC: python examples/backend_template/client.py.

Exit code 1 when fewer than 95 % of the answers are right or the protocols disagree.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
from train import split
from tritonclient import grpc, http


def ask(module: Any, url: str, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels and scores of all rows, in requests of four."""
    client = module.InferenceServerClient(url)
    labels, scores = [], []
    for start in range(0, len(features), 4):
        part = features[start : start + 4]
        tensor = module.InferInput("features", list(part.shape), "FP32")
        tensor.set_data_from_numpy(part)
        answer = client.infer("tumours", [tensor])
        labels += [text.decode() for text in answer.as_numpy("label")[:, 0]]
        scores.append(answer.as_numpy("scores"))
    return np.array(labels), np.concatenate(scores)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--http", default="127.0.0.1:8000")
    options.add_argument("--grpc", default="127.0.0.1:8001")
    given = options.parse_args()
    _, features, _, truth = split()
    features = features.astype(np.float32)
    found = {"HTTP": ask(http, given.http, features), "gRPC": ask(grpc, given.grpc, features)}
    right = {name: float((labels == truth).mean()) for name, (labels, _) in found.items()}
    for name, share in right.items():
        print(f"{name}: {share:.1%} of {len(truth)} held-out tumours right")
    same = np.allclose(found["HTTP"][1], found["gRPC"][1])
    return int(min(right.values()) < 0.95 or not same)


if __name__ == "__main__":
    sys.exit(main())
