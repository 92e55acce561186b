"""Classify held-out digits through a running server and compare with onnxruntime in this process.

    python examples/digits/demo.py --url 127.0.0.1:8000

Exit code 1 when the server's accuracy differs from the local one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import data
import numpy as np
import onnxruntime
from tritonclient import http

MODEL = Path(__file__).resolve().parents[1] / "models" / "digits" / "1" / "model.onnx"
SHADES = " .:-=+*#%"


def picture(image: np.ndarray) -> list[str]:
    """Eight lines of text for one (1, 8, 8) image of pixels 0..16."""
    return ["".join(SHADES[min(int(pixel) // 2, len(SHADES) - 1)] * 2 for pixel in row) for row in image[0]]


def infer(client: http.InferenceServerClient, images: np.ndarray, class_count: int = 0) -> np.ndarray:
    """Send images of shape (n, 1, 8, 8); scores (n, 10), or with class_count the top classes (n, class_count)."""
    tensor = http.InferInput("image", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images)
    output = http.InferRequestedOutput("scores", binary_data=True, class_count=class_count)
    return client.infer("digits", [tensor], outputs=[output]).as_numpy("scores")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--url", default="127.0.0.1:8000")
    url = options.parse_args().url

    _, images, _, labels = data.load()
    session = onnxruntime.InferenceSession(str(MODEL), providers=["CPUExecutionProvider"])
    local = session.run(None, {"image": images})[0]

    with http.InferenceServerClient(url) as client:
        served, seconds = [], []
        for image in images[:, None]:
            started = time.perf_counter()
            served.append(infer(client, image)[0])
            seconds.append(time.perf_counter() - started)
        classes = infer(client, images[:3], class_count=2)
    remote = np.stack(served)

    for image, truth, found in zip(images, labels, classes, strict=False):
        texts = [entry.decode() for entry in found]
        notes = ["", f"label {truth}", *texts]
        for line, note in zip(picture(image), [*notes, *[""] * 8], strict=False):
            print(f"    {line}  {note}".rstrip())

    here = float((local.argmax(axis=1) == labels).mean())
    there = float((remote.argmax(axis=1) == labels).mean())
    print(f"  accuracy on {len(images)} held-out images: {here:.4%} local, {there:.4%} through the server")
    print(f"  largest difference of a score: {np.abs(local - remote).max():.1e}")
    print(f"  median round trip by tritonclient: {statistics.median(seconds) * 1e6:.0f} us")
    if here != there:
        print("  the accuracies differ", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
