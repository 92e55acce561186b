"""Real texts with a subject: the documentation strings of numpy, scipy and scikit-learn, as they are installed.

Each is split where its sections begin, into what it says first and the rest. It knows nothing of models.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import random
import re
import warnings
from typing import NamedTuple

SUBJECTS = (
    "numpy.fft", "numpy.linalg", "numpy.ma", "numpy.polynomial", "numpy.random", "numpy.strings",
    "scipy.cluster.hierarchy", "scipy.fft", "scipy.integrate", "scipy.interpolate", "scipy.linalg", "scipy.ndimage",
    "scipy.optimize", "scipy.signal", "scipy.sparse", "scipy.spatial", "scipy.special", "scipy.stats",
    "sklearn.cluster", "sklearn.datasets", "sklearn.decomposition", "sklearn.ensemble",
    "sklearn.feature_extraction.text", "sklearn.linear_model", "sklearn.metrics", "sklearn.model_selection",
    "sklearn.neighbors", "sklearn.preprocessing", "numpy",
)  # fmt: skip
HELD_OUT = 0.2
SEED = 11
_SECTION = re.compile(
    r"\n\s*(Parameters|Returns|Yields|Examples|See Also|Notes|References|Attributes|Methods)\s*\n\s*-{3,}"
)
# What C functions begin with: their own signature.
_SIGNATURE = re.compile(r"\A[\w.]+\([^)]*\)(?:\s*->[^\n]*)?\n")
_LEAST_WORDS = 8


class Text(NamedTuple):
    """``head``: what the function does; ``rest``: parameters and notes, without examples; ``subject``: its module."""

    name: str
    subject: str
    head: str
    rest: str


def load() -> tuple[list[Text], list[Text]]:
    """Return texts for training and held-out ones; the same for the same versions of the packages."""
    found: dict[str, Text] = {}
    for subject in SUBJECTS:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            module = importlib.import_module(subject)
            for name, doc in _documents(module):
                head, rest = _split(doc)
                if len(head.split()) >= _LEAST_WORDS and head not in found:
                    found[head] = Text(f"{subject}.{name}", subject, head, rest)
    texts = sorted(found.values())
    random.Random(SEED).shuffle(texts)
    n = int(len(texts) * HELD_OUT)
    return texts[n:], texts[:n]


def _documents(module: object) -> list[tuple[str, str]]:
    made = []
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or inspect.ismodule(value) or not callable(value):
            continue
        made.append((name, inspect.getdoc(value) or ""))
        if inspect.isclass(value):
            made += [
                (f"{name}.{key}", inspect.getdoc(one) or "")
                for key, one in sorted(vars(value).items()) if not key.startswith("_") and callable(one)
            ]  # fmt: skip
    return made


def _split(doc: str) -> tuple[str, str]:
    parts = _SECTION.split(_SIGNATURE.sub("", doc))
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    return parts[0].strip(), " ".join(sections.get(name, "") for name in ("Notes", "Parameters", "Returns")).strip()
