"""Search documentation by meaning through a running server: python examples/embeddings/client.py ["what you look for"].

Without a text it measures the embeddings on texts that training never saw; exit code 1 when they are worse than they
should be.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from typing import Any

import numpy as np
import texts
from tritonclient import grpc, http

BATCH, NEIGHBOURS = 64, 5
QUESTIONS = (
    "solve a system of linear equations",
    "draw random samples from a bell curve",
    "smooth a noisy signal",
    "split data into groups of similar points",
)


def embed(module: Any, url: str, documents: list[str]) -> np.ndarray:
    """Return the embeddings of texts, one row each. ``module``: tritonclient.http or tritonclient.grpc."""
    client = module.InferenceServerClient(url)
    made = []
    for start in range(0, len(documents), BATCH):
        part = np.array([[text.encode()] for text in documents[start : start + BATCH]], object)
        tensor = module.InferInput("text", list(part.shape), "BYTES")
        tensor.set_data_from_numpy(part)
        made.append(client.infer("embed", [tensor]).as_numpy("embedding"))
    return np.concatenate(made)


def neighbours(query: np.ndarray, known: np.ndarray, count: int) -> list[tuple[int, float]]:
    """Return the nearest rows and their cosines, nearest first."""
    near = known @ query
    return [(int(n), float(near[n])) for n in np.argsort(-near)[:count]]


def measure(url: str) -> dict[str, float]:
    """Return what the embeddings of held-out texts are good for, and what guessing would give."""
    training, held = texts.load()
    known, queries = (embed(grpc, url, [text.head for text in part]) for part in (training, held))
    right = 0
    for text, query in zip(held, queries, strict=True):
        votes: Counter[str] = Counter()
        for n, near in neighbours(query, known, NEIGHBOURS):
            votes[training[n].subject] += near
        right += votes.most_common(1)[0][0] == text.subject
    whole = [n for n, text in enumerate(held) if len(text.rest.split()) >= 8]
    rests = embed(grpc, url, [held[n].rest for n in whole])
    found = sum(any(n == place for n, _ in neighbours(queries[at], rests, 10)) for place, at in enumerate(whole))
    return {
        "texts": len(held), "subject": right / len(held), "pairs": len(whole), "found": found / len(whole),
        "commonest": Counter(text.subject for text in held).most_common(1)[0][1] / len(held),
    }  # fmt: skip


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("text", nargs="*", help="what to look for")
    options.add_argument("--http", default="127.0.0.1:8000")
    options.add_argument("--grpc", default="127.0.0.1:8001")
    given = options.parse_args()

    everything = [text for part in texts.load() for text in part]
    known = embed(grpc, given.grpc, [text.head for text in everything])
    questions = [" ".join(given.text)] if given.text else list(QUESTIONS)
    for question, vector in zip(questions, embed(http, given.http, questions), strict=True):
        print(f"  {question}")
        for n, near in neighbours(vector, known, 3):
            print(f"    {near:.2f}  {everything[n].name}")
    if given.text:
        return 0
    result = measure(given.grpc)
    print(
        f"  {result['texts']:.0f} held-out texts: the subject of their {NEIGHBOURS} neighbours is theirs for "
        f"{result['subject']:.1%} (always the commonest: {result['commonest']:.1%})\n"
        f"  of {result['pairs']:.0f} descriptions, the notes of the same function are among the 10 nearest for "
        f"{result['found']:.1%} (by chance: {10 / result['pairs']:.1%})"
    )
    return int(result["subject"] < 0.6 or result["found"] < 0.6)


if __name__ == "__main__":
    sys.exit(main())
