"""Send image files to a running server: python examples/image_pipeline/client.py [file.png ...].

Without files it writes handwritten digits that training never saw as PNG files, black on white, in several sizes, and
sends those; exit code 1 when fewer than 95 % of the answers are right.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient import grpc, http

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "digits"))
sys.path.insert(0, str(Path(__file__).resolve().parent / "models" / "classify" / "1"))
import data
import png

BATCH = 8


def classify(module: Any, url: str, files: list[Path]) -> list[tuple[str, float]]:
    """Return the label of each file and how sure it is."""
    client = module.InferenceServerClient(url)
    found = []
    for start in range(0, len(files), BATCH):
        images = np.array([[file.read_bytes()] for file in files[start : start + BATCH]], object)
        tensor = module.InferInput("image", list(images.shape), "BYTES")
        tensor.set_data_from_numpy(images)
        answer = client.infer("classify", [tensor])
        labels, sure = answer.as_numpy("label")[:, 0], answer.as_numpy("confidence")[:, 0]
        found += [(label.decode(), float(value)) for label, value in zip(labels, sure, strict=True)]
    return found


def pictures(folder: Path) -> tuple[list[Path], list[str]]:
    """Write the held-out digits as files; return them and what they show."""
    _, images, _, labels = data.load()
    files = []
    for n, (image, label) in enumerate(zip(images[:, 0], labels, strict=True)):
        paper = (255 - image / 16 * 255).round().astype(np.uint8)
        # Taller and wider by whole numbers; every third in colour.
        large = paper.repeat(3 + n % 4, axis=0).repeat(2 + n % 7, axis=1)
        files.append(folder / f"{n:03}_{label}.png")
        files[-1].write_bytes(png.write(large if n % 3 else np.stack([large] * 3, axis=2)))
    return files, [str(label) for label in labels]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("files", nargs="*", type=Path)
    options.add_argument("--http", default="127.0.0.1:8000")
    options.add_argument("--grpc", default="127.0.0.1:8001")
    given = options.parse_args()
    if given.files:
        for file, (label, sure) in zip(given.files, classify(http, given.http, given.files), strict=True):
            print(f"{file}: {label} ({sure:.1%})")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        files, truth = pictures(Path(folder))
        shares = []
        for protocol, module, url in (("HTTP", http, given.http), ("gRPC", grpc, given.grpc)):
            found = classify(module, url, files)
            shares.append(np.mean([label == digit for (label, _), digit in zip(found, truth, strict=True)]))
            print(f"{protocol}: {shares[-1]:.1%} of {len(files)} PNG files right; {files[0].name} is {found[0][0]}, "
                  f"sure to {found[0][1]:.1%}")  # fmt: skip
    return int(min(shares) < 0.95)


if __name__ == "__main__":
    sys.exit(main())
