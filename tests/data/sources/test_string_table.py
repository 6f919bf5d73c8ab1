"""Strings in two arrays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from plsc.data.sources.string_table import StringTable


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]))))
def test_a_string_table_holds_the_strings(strings):
    packed = StringTable(strings)
    assert list(packed) == strings
    assert list(StringTable.from_arrays(packed.text, packed.ends)) == strings
