"""Tables in terminals of any width."""

from api.commands.terminal import fitted
from planner.view import Column, Table

WIDE = Table(
    "Memory",
    (Column("stage"), Column("weights", True), Column("gradients", True), Column("id")),
    (("0", "1.5", "2.5", "abc"), ("1–3", "10.5", "20.5", "def")),
)


def test_a_table_that_fits_stays_as_it_is():
    assert fitted(WIDE, 80) is WIDE


def test_a_table_that_fits_only_on_its_side_is_turned():
    turned = fitted(WIDE, 28)
    assert [column.title for column in turned.columns] == ["stage", "0", "1–3"]
    assert turned.rows == (("weights", "1.5", "10.5"), ("gradients", "2.5", "20.5"), ("id", "abc", "def"))


def test_a_table_that_fits_neither_way_loses_its_ids():
    narrow = fitted(WIDE, 10)
    assert [column.title for column in narrow.columns] == ["stage", "weights", "gradients"]
    assert narrow.rows == (("0", "1.5", "2.5"), ("1–3", "10.5", "20.5"))
