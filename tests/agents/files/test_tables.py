"""A table's delimiter, header, rows and columns are told from its text."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runstone.agents.files import tables
from runstone.agents.files.columns import kind_of_cell
from runstone.agents.files.tables import profile_table, sniff_delimiter
from runstone.limits import KIB
from tests.support.folders import json_bytes


def test_the_widest_and_wildest_table_stays_under_the_logs_bound():
    rows = [[f"\x01😀{column}" + "😀\x02" * 100 for column in range(400)] for _ in range(4)]
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    table = profile_table(out.getvalue())
    assert (len(table.columns), table.columns_left_out) == (200, 200)
    assert json_bytes(table) < 512 * KIB


def test_a_table_with_too_many_rows_is_estimated(monkeypatch):
    monkeypatch.setattr(tables, "ROWS_MAX", 3_000)
    table = profile_table("n\n" + "1\n" * 10_000)
    assert table.rows == 3_000
    assert table.rows_estimated is not None
    assert 9_000 < table.rows_estimated < 11_000


def test_columns_are_described_with_type_gaps_range_and_outliers():
    body = "".join(f"{number},{number / 2},name {number},2026-01-{number % 28 + 1:02},yes\n" for number in range(40))
    table = profile_table("id,price,name,day,ok\n" + body + "n/a,99999.5,,,no\n")
    types = {column.name: column.type for column in table.columns}
    assert types == {"id": "integer", "price": "number", "name": "text", "day": "date", "ok": "boolean"}
    by_name = {column.name: column for column in table.columns}
    assert (table.rows, table.header, table.delimiter) == (41, True, ",")
    assert [by_name[name].empty for name in types] == [1, 0, 1, 1, 0]
    assert (by_name["price"].low, by_name["price"].high, by_name["price"].outliers) == (0.0, 99999.5, 1)
    assert by_name["id"].mean == 19.5
    assert (by_name["ok"].distinct, by_name["id"].distinct) == (2, 40)


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        ("12", "integer"),
        ("-0", "integer"),
        ("007", "text"),
        ("1.5e3", "number"),
        ("1e999", "text"),
        ("1" * 29, "number"),
        ("1" * 5_000, "text"),
        (" NULL ", "empty"),
        ("٣", "text"),
        ("inf", "text"),
        ("2026-11-20T08:15:30Z", "date"),
        ("31.12.2026", "date"),
    ],
)
def test_a_cell_is_judged_by_its_text(cell, kind):
    assert kind_of_cell(cell) == kind


def test_a_column_of_two_types_says_how_many_of_each():
    (column,) = profile_table("age\n" + "30\n" * 9 + "unknown\n").columns
    assert (column.type, column.kinds) == ("integer", {"integer": 9, "text": 1})


@pytest.mark.parametrize("delimiter", list(",\t;|"))
def test_each_delimiter_is_recognised_among_the_others_signs(delimiter):
    text = f"name{delimiter}sum\n" + "".join(
        f"a, b{delimiter}1;5\n" if delimiter == "|" else f"x{delimiter}1\n" for _ in range(9)
    )
    assert sniff_delimiter(text) == delimiter


def test_decimal_commas_do_not_hide_semicolons():
    table = profile_table("a;b\n" + "1,5;2,5\n" * 20)
    assert (table.delimiter, len(table.columns)) == (";", 2)


def test_ragged_repeated_and_broken_rows_are_counted():
    table = profile_table("a,b\n1,2\n1,2\n1\n1,2,3\n" + '"' + "x" * 200_000 + '",2\n' + "5,6\n")
    assert (table.rows, table.ragged, table.repeated, table.broken) == (5, 2, 1, 1)


def test_a_row_that_the_cut_went_through_is_left_away():
    table = profile_table("a,b\n1,2\n3", cut=True)
    assert (table.rows, table.ragged) == (1, 0)


def test_a_table_without_a_header_keeps_its_first_row():
    table = profile_table("1,a\n2,b\n")
    assert (table.header, table.rows, table.columns[0].name) == (False, 2, "column 1")


@given(rows=st.lists(st.lists(st.text(alphabet="ab1", min_size=1, max_size=4), min_size=3, max_size=3), min_size=2))
def test_every_row_that_was_written_is_counted(rows):
    out = io.StringIO()
    csv.writer(out).writerows([["first", "second", "third"], *rows])
    table = profile_table(out.getvalue())
    assert (table.rows, table.ragged, table.broken) == (len(rows), 0, 0)
    assert table.repeated == len(rows) - len({tuple(row) for row in rows})
