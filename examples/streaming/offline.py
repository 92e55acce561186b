"""The same network run by onnxruntime in this process, one recording after another: what a server must answer too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import speech
import vad


class Detector:
    """The model file, with the state in our own hands."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(self, samples: np.ndarray) -> np.ndarray:
        """Return the probability of speech in each frame of a recording."""
        previous, hidden = np.zeros((1, vad.FRAME), np.float32), np.zeros((1, vad.HIDDEN), np.float32)
        found = []
        for number, frame in enumerate(samples.reshape(-1, 1, speech.FRAME)):
            start = np.array([[number == 0]], np.float32)
            feeds = {"FRAME": frame, "START": start, "PREVIOUS": previous, "HIDDEN": hidden}
            chance, previous, hidden = self._session.run(["SPEECH", "NEXT_PREVIOUS", "NEXT_HIDDEN"], feeds)
            found.append(chance[0, 0])
        return np.array(found)
