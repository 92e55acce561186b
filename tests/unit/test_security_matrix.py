"""docs/security.md: each published CVE of Triton stands in the matrix once, with a test.

test_pages.py holds that the tests that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
# NVIDIA's bulletins to September 2026, by year.
CVES = {
    f"CVE-{year}-{number}"
    for year, numbers in {
        2023: "31036",
        2024: "0087 0088 0095 0100 0103 0116 53880",
        2025: "23268 23310 23311 23316 23317 23318 23319 23320 23321 23322 23323 23324 23325 23326 23327 23328 23329 "
              "23331 23333 23334 23335 23336 33201 33202 33211 33238 33254",
        2026: "16497 24146 24147 24158 24173 24174 24175 24206 24207 24208 24209 24210 24213 24214 24215 24264 24266 "
              "47476 47477 47478 47479 47480 47481 47482 47487 47606 47625 47627 47628 47629 47630",
    }.items()
    for number in numbers.split()
}  # fmt: skip
_ROW = re.compile(r"^\| (CVE-\d{4}-\d+) \| (.+?) \| (.+?) \|$", re.MULTILINE)
_TEST = re.compile(r"`([\w/]+\.py)(?:::(\w+))?`")


def rows() -> list[tuple[str, str, str]]:
    return _ROW.findall(PAGE)


def test_each_is_there_once() -> None:
    listed = [cve for cve, _, _ in rows()]
    assert len(CVES) == 66
    assert sorted(listed) == sorted(CVES)
    # No other line of the page looks like a row and is not read as one.
    assert len(re.findall(r"^\| CVE-", PAGE, re.MULTILINE)) == len(listed)


def test_each_names_a_test_or_says_why_not() -> None:
    for cve, _, cover in rows():
        assert _TEST.search(cover) or cover.startswith("no such component: "), cve
    assert len(_TEST.findall(PAGE)) > 60


def test_each_group_has_its_file() -> None:
    for number in range(1, 20):
        assert re.search(rf"SEC-{number:02}\b", PAGE), number
