"""Byte-pair encoding: learned from the words of a corpus, kept as a list of merges, applied to texts.

The same code trains and serves. Lower case; words, single digits and single other signs are never merged together.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import pairwise

PADDING, UNKNOWN = 0, 1
_PIECES = re.compile(r"[^\W\d_]+|\d|[^\w\s]|_")
# Ends a word, so that "art" and the end of "chart" are different tokens.
_END = "\u2581"
_MAX_WORD = 40
Pair = tuple[str, str]


def words(text: str) -> list[str]:
    return [word[:_MAX_WORD] + _END for word in _PIECES.findall(text.lower())]


def learn(texts: Iterable[str], size: int, least: int = 2) -> tuple[list[str], list[Pair]]:
    """Return ``size`` tokens at most and the merges that make them; a merge is seen ``least`` times."""
    counts = Counter(word for text in texts for word in words(text))
    spelled = {word: list(word) for word in sorted(counts)}
    letters: Counter[str] = Counter()
    for word, count in counts.items():
        letters.update(dict.fromkeys(word, count))
    tokens = ["<pad>", "<unk>", *sorted(letter for letter, count in letters.items() if count >= least)]
    pairs: Counter[Pair] = Counter()
    where: dict[Pair, set[str]] = defaultdict(set)
    for word, parts in spelled.items():
        for pair in pairwise(parts):
            pairs[pair] += counts[word]
            where[pair].add(word)
    # Every count that a pair ever had; what is out of date is passed over.
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapify(heap)
    merges: list[Pair] = []
    known = set(tokens)
    while heap and len(tokens) < size:
        count, best = heappop(heap)
        if -count != pairs[best]:
            continue
        if -count < least:
            break
        merges.append(best)
        if (made := "".join(best)) not in known:
            known.add(made)
            tokens.append(made)
        changed: set[Pair] = set()
        for word in where.pop(best):
            for parts, sign in ((spelled[word], -1), (_merged(spelled[word], best), 1)):
                for pair in pairwise(parts):
                    pairs[pair] += sign * counts[word]
                    changed.add(pair)
                    if sign > 0:
                        where[pair].add(word)
                spelled[word] = parts
        for pair in changed:
            heappush(heap, (-pairs[pair], pair))
    return tokens, merges


def _merged(parts: Sequence[str], pair: Pair) -> list[str]:
    made, at = [], 0
    while at < len(parts):
        if at + 1 < len(parts) and (parts[at], parts[at + 1]) == pair:
            made.append(parts[at] + parts[at + 1])
            at += 2
        else:
            made.append(parts[at])
            at += 1
    return made


class Tokenizer:
    """Turns texts into numbers of tokens. ``tokens`` and ``merges`` as ``learn`` returns them."""

    def __init__(self, tokens: Sequence[str], merges: Iterable[Pair]) -> None:
        self.tokens = list(tokens)
        self._numbers = {token: number for number, token in enumerate(self.tokens)}
        self._ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}
        self._word = lru_cache(maxsize=65536)(self._encode_word)

    def encode(self, text: str, length: int) -> list[int]:
        """Return ``length`` numbers: the text's first tokens, then padding."""
        made: list[int] = []
        for word in words(text[: 20 * length]):
            made += self._word(word)
            if len(made) >= length:
                break
        return (made + [PADDING] * length)[:length]

    def _encode_word(self, word: str) -> list[int]:
        parts = list(word)
        while len(parts) > 1:
            pairs = set(pairwise(parts))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            parts = _merged(parts, best)
        return [self._numbers.get(part, UNKNOWN) for part in parts]
