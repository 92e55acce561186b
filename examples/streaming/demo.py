"""Send many recordings at the same time, frame by frame and mixed, and compare with offline runs one after another.

    python examples/streaming/demo.py --grpc 127.0.0.1:8001

Each recording is a sequence of its own on one gRPC stream. Exit code 1 when an answer differs from the offline one.
"""

from __future__ import annotations

import argparse
import queue
import random
import sys
import time
from pathlib import Path

import numpy as np
import offline
import speech
from tritonclient import grpc

MODEL = Path(__file__).resolve().parents[1] / "models" / "voice_activity" / "1" / "model.onnx"
FIRST_SEED = 50_000  # none that the network was trained on
# Batches of different sizes round differently in the last bits.
TOLERANCE = 1e-4


def interleaved(lengths: list[int], seed: int) -> list[int]:
    """Return a random order of all frames: the recording whose next frame goes."""
    turns = [number for number, length in enumerate(lengths) for _ in range(length)]
    random.Random(seed).shuffle(turns)
    return turns


def send_all(address: str, recordings: list[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """Return the answers of each recording, frame by frame, and the seconds that it took."""
    frames = [samples.reshape(-1, 1, speech.FRAME) for samples in recordings]
    answers: queue.Queue = queue.Queue()
    found = [np.full(len(part), np.nan, np.float32) for part in frames]
    at = [0] * len(frames)
    client = grpc.InferenceServerClient(address)
    client.start_stream(lambda result, error: answers.put((result, error)))
    began = time.perf_counter()
    for number in interleaved([len(part) for part in frames], seed=1):
        i = at[number]
        at[number] += 1
        tensor = grpc.InferInput("FRAME", [1, speech.FRAME], "FP32")
        tensor.set_data_from_numpy(frames[number][i])
        client.async_stream_infer(
            "voice_activity", [tensor], request_id=f"{number}/{i}", sequence_id=number + 1,
            sequence_start=i == 0, sequence_end=i == len(frames[number]) - 1,
        )  # fmt: skip
    for _ in range(sum(map(len, frames))):
        result, error = answers.get(timeout=60)
        if error is not None:
            raise SystemExit(f"a frame failed: {error}")
        number, i = map(int, result.get_response().id.split("/"))
        found[number][i] = result.as_numpy("SPEECH")[0, 0]
    seconds = time.perf_counter() - began
    client.stop_stream()
    client.close()
    return found, seconds


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--grpc", default="127.0.0.1:8001")
    options.add_argument("--streams", type=int, default=100)
    given = options.parse_args()
    made = [speech.recording(FIRST_SEED + number) for number in range(given.streams)]
    detector = offline.Detector(MODEL)
    expected = [detector.run(samples) for samples, _ in made]
    found, seconds = send_all(given.grpc, [samples for samples, _ in made])
    total = sum(map(len, found))
    gap = max(float(np.max(np.abs(a - b))) for a, b in zip(found, expected, strict=True))
    right = sum(int(np.sum((a > 0.5) == labels)) for a, (_, labels) in zip(found, made, strict=True))
    rate = total * speech.FRAME / speech.RATE / seconds
    print(f"  {given.streams} streams, {total} frames in {seconds:.2f} s: {rate:.0f} times real time")
    print(f"  largest difference to the offline runs {gap:.1e}; {right / total:.1%} of the frames rightly told")
    if not gap <= TOLERANCE:
        print(f"  the streams do not answer as the offline runs do (more than {TOLERANCE})")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
