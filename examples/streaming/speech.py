"""Generated recordings with a known answer: speech-like sounds with pauses, in noise. Knows no network.

Voiced sounds are pulses of a wandering pitch through three resonances, unvoiced ones are high-passed noise; they come
in syllables. The noise is white or low, with a hum, clicks and steady tones, which a detector by loudness alone would
take for speech.
"""

from __future__ import annotations

import numpy as np

RATE = 16000
FRAME = 256  # samples, 16 ms
FORMANTS = ((300, 900, 2400), (700, 1200, 2500), (400, 2000, 2700), (500, 1500, 2500), (350, 700, 2300))


def resonate(source: np.ndarray, frequency: float, width: float) -> np.ndarray:
    """Filter by one resonance, as a convolution with its decaying response."""
    n = np.arange(int(RATE * 4 / width))
    response = np.exp(-np.pi * width * n / RATE) * np.sin(2 * np.pi * frequency * n / RATE)
    return np.convolve(source, response)[: len(source)]


def voiced(rng: np.random.Generator, samples: int) -> np.ndarray:
    pitch = rng.uniform(85, 250) * np.exp(np.cumsum(rng.normal(0, 0.0015, samples)))
    phase = np.cumsum(pitch / RATE)
    pulses = np.diff(np.floor(phase), prepend=0.0)
    sound = np.zeros(samples)
    for frequency, weight in zip(FORMANTS[rng.integers(len(FORMANTS))], (1.0, 0.6, 0.3), strict=True):
        sound += weight * resonate(pulses, frequency * rng.uniform(0.9, 1.1), rng.uniform(60, 120))
    return sound


def unvoiced(rng: np.random.Generator, samples: int) -> np.ndarray:
    return np.diff(rng.normal(0, 1, samples), prepend=0.0)


def utterance(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Syllables one after another, each with its own rise and fall."""
    sound = np.zeros(samples)
    at = 0
    while at < samples:
        length = min(int(RATE * rng.uniform(0.08, 0.25)), samples - at)
        kind, level = (voiced, 1.0) if rng.random() < 0.75 else (unvoiced, 0.4)
        part = kind(rng, length)
        part *= np.sin(np.pi * np.arange(length) / length) ** 0.5 * level / (np.std(part) + 1e-9)
        sound[at : at + length] = part
        at += length
    return sound


def noise(rng: np.random.Generator, samples: int) -> np.ndarray:
    sound = rng.normal(0, 1, samples)
    if rng.random() < 0.5:
        sound = np.convolve(sound, np.ones(8) / 3)[:samples]
    time = np.arange(samples) / RATE
    if rng.random() < 0.5:
        sound += rng.uniform(0.5, 2) * np.sin(2 * np.pi * rng.choice([50, 60, 100]) * time)
    if rng.random() < 0.3:
        sound += rng.uniform(0.5, 2) * np.sin(2 * np.pi * rng.uniform(300, 3000) * time)
    for _ in range(rng.poisson(2)):
        at = rng.integers(samples)
        sound[at : at + 40] += rng.normal(0, 8, len(sound[at : at + 40]))
    return sound


def recording(seed: int, seconds: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 samples in -1..1, a whole number of frames, and whether each frame is mostly speech."""
    rng = np.random.default_rng(seed)
    samples = int(RATE * seconds) // FRAME * FRAME
    speech, active = np.zeros(samples), np.zeros(samples)
    at = int(RATE * rng.uniform(0.0, 0.8))
    while at < samples:
        length = min(int(RATE * rng.uniform(0.3, 1.2)), samples - at)
        speech[at : at + length] = utterance(rng, length)
        active[at : at + length] = 1
        at += length + int(RATE * rng.uniform(0.2, 0.9))
    ratio = 10 ** (rng.uniform(3, 20) / 20)
    mixed = speech * ratio + noise(rng, samples)
    mixed *= rng.uniform(0.05, 0.5) / np.max(np.abs(mixed))
    return mixed.astype(np.float32), active.reshape(-1, FRAME).mean(axis=1) > 0.5
