"""Start-up tables: Triton's borders, one line a row, cells that cannot break out."""

from __future__ import annotations

import pytest

from triton_fast.observability import tables


def test_models_as_triton_prints_them() -> None:
    rows = [
        tables.ModelRow("bad", "-", "Not loaded: No model version was found"),
        tables.ModelRow("m", "1", "READY"),
    ]
    assert tables.models(rows) == (
        "+-------+---------+----------------------------------------+\n"
        "| Model | Version | Status                                 |\n"
        "+-------+---------+----------------------------------------+\n"
        "| bad   | -       | Not loaded: No model version was found |\n"
        "| m     | 1       | READY                                  |\n"
        "+-------+---------+----------------------------------------+\n"
    )


def test_an_empty_table_keeps_its_head() -> None:
    assert tables.agents([]) == (
        "+------------------+------+\n"
        "| Repository Agent | Path |\n"
        "+------------------+------+\n"
        "+------------------+------+\n"
    )


def test_cells_stay_in_their_row() -> None:
    text = tables.options([("a\nb", "\x1b[2J\u202e"), ("quote", '"c:\\x"')])
    assert "| a\\nb   | \\u001B[2J\\u202E |" in text
    assert '"c:\\x"' in text
    assert len({len(line) for line in text.splitlines()}) == 1


def test_rows_shorter_and_longer_than_the_head() -> None:
    assert "| x       |      |        |         |" in tables.table(tables.BACKEND_COLUMNS, [("x",)])
    with pytest.raises(ValueError, match="a row of 5 cells"):
        tables.table(tables.BACKEND_COLUMNS, [("a", "b", "c", "d", "e")])
