"""Classify held-out digits through a running server, over HTTP and over gRPC, and compare with a local onnxruntime.

    python examples/digits/demo.py --http 127.0.0.1:8000 --grpc 127.0.0.1:8001

Exit code 1 when an accuracy differs from the local one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import data
import numpy as np
import onnxruntime
from tritonclient import grpc, http

MODEL = Path(__file__).resolve().parents[1] / "models" / "digits" / "1" / "model.onnx"
SHADES = " .:-=+*#%"


def picture(image: np.ndarray) -> list[str]:
    """Eight lines of text for one (1, 8, 8) image of pixels 0..16."""
    return ["".join(SHADES[min(int(pixel) // 2, len(SHADES) - 1)] * 2 for pixel in row) for row in image[0]]


class Client:
    """tritonclient for one protocol; both have the same classes."""

    def __init__(self, protocol: str, url: str) -> None:
        self.protocol = protocol
        self.module: Any = {"HTTP": http, "gRPC": grpc}[protocol]
        self.client = self.module.InferenceServerClient(url)

    def infer(self, images: np.ndarray, class_count: int = 0) -> np.ndarray:
        """Send images of shape (n, 1, 8, 8); scores (n, 10), or with class_count the top classes (n, class_count)."""
        tensor = self.module.InferInput("image", list(images.shape), "FP32")
        tensor.set_data_from_numpy(images)
        output = self.module.InferRequestedOutput("scores", class_count=class_count)
        return self.client.infer("digits", [tensor], outputs=[output]).as_numpy("scores")

    def infer_one_by_one(self, images: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the scores of all images and the median round trip in seconds."""
        scores, seconds = [], []
        for image in images[:, None]:
            started = time.perf_counter()
            scores.append(self.infer(image)[0])
            seconds.append(time.perf_counter() - started)
        return np.stack(scores), statistics.median(seconds)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--http", default="127.0.0.1:8000")
    options.add_argument("--grpc", default="127.0.0.1:8001")
    given = options.parse_args()

    _, images, _, labels = data.load()
    session = onnxruntime.InferenceSession(str(MODEL), providers=["CPUExecutionProvider"])
    local = session.run(None, {"image": images})[0]
    here = float((local.argmax(axis=1) == labels).mean())
    clients = [Client("HTTP", given.http), Client("gRPC", given.grpc)]

    for image, truth, found in zip(images, labels, clients[0].infer(images[:3], class_count=2), strict=False):
        texts = [entry.decode() for entry in found]
        notes = ["", f"label {truth}", *texts]
        for line, note in zip(picture(image), [*notes, *[""] * 8], strict=False):
            print(f"    {line}  {note}".rstrip())

    print(f"  accuracy on {len(images)} held-out images: {here:.4%} local")
    differs = False
    for client in clients:
        remote, seconds = client.infer_one_by_one(images)
        there = float((remote.argmax(axis=1) == labels).mean())
        print(f"  {client.protocol}: {there:.4%}, largest difference of a score {np.abs(local - remote).max():.1e}, "
              f"median round trip by tritonclient {seconds * 1e6:.0f} us")
        if here != there:
            print("  the accuracies differ", file=sys.stderr)
            differs = True
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
