"""Medians, ratios and targets of finished rounds, as a table and as raw figures."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from statistics import median

from bench.server.cases import Case
from bench.server.grpc_cases import GrpcCase


class Result:
    """All rounds of one case: ``rounds[peer]`` is a list of the load generator's figures."""

    def __init__(self, case: Case | GrpcCase, rounds: Mapping[str, list[dict]]) -> None:
        self.case = case
        self.rounds = rounds

    def values(self, peer: str, key: str) -> list[float]:
        return [figures[key] for figures in self.rounds[peer]]

    def ratio(self, key: str) -> float:
        """Median over the rounds of triton_fast / nginx, each pair measured back to back."""
        pairs = zip(self.values("triton_fast", key), self.values("nginx", key), strict=True)
        return median(ours / theirs for ours, theirs in pairs if theirs)

    def met(self) -> bool | None:
        """Whether the target is met; None without a target."""
        target = self.case.target
        if target is None:
            return None
        if target.kind == "min_ratio":
            return self.ratio("rate") >= target.value
        if target.kind == "max_p50_ratio":
            return self.ratio("p50") <= target.value
        return median(self.values("triton_fast", "rate")) >= target.value

    def faults(self) -> list[str]:
        """Every kind of error that was counted, in words."""
        found = []
        for peer, rounds in self.rounds.items():
            for kind in rounds[0]["errors"]:
                count = sum(figures["errors"][kind] for figures in rounds)
                if count:
                    found.append(f"{self.case.name}: {peer}: {count} {kind} errors")
        return found


def _spread(values: list[float], digits: int = 0) -> str:
    return f"{median(values):.{digits}f} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


def print_table(results: list[Result]) -> None:
    """Medians over the rounds, smallest and largest in brackets."""
    rows = [("case", "peer", "requests/s", "p50 us", "p99 us", "CPU us/request", "RSS MB", "of nginx", "target")]
    for result in results:
        target = result.case.target
        for peer in result.rounds:
            cpu = [figures["cpu_seconds"] / max(figures["requests"], 1) * 1e6 for figures in result.rounds[peer]]
            ours = peer == "triton_fast"
            verdict = f"{target} {'met' if result.met() else 'MISSED'}" if ours and target else ""
            rows.append(
                (
                    result.case.name if ours else "",
                    peer,
                    _spread(result.values(peer, "rate")),
                    _spread(result.values(peer, "p50")),
                    f"{median(result.values(peer, 'p99')):.0f}",
                    f"{median(cpu):.1f}",
                    f"{max(result.values(peer, 'rss_bytes')) / 1e6:.0f}",
                    f"{result.ratio('rate'):.0%}, p50 {result.ratio('p50'):.2f}x" if ours else "",
                    verdict,
                )
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def raw(results: list[Result], given: argparse.Namespace, machine: Mapping[str, object]) -> dict[str, object]:
    """Everything that was measured, for bench/out."""
    return {
        "machine": machine,
        "options": vars(given),
        "cases": {
            result.case.name: {
                **result.case.load,
                "request_bytes": len(result.case.body),
                "target": str(result.case.target) if result.case.target else None,
                "met": result.met(),
                "rounds": result.rounds,
            }
            for result in results
        },
    }
