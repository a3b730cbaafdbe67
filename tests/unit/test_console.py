"""Tables of text: every column is as wide as its widest cell, whatever the cells hold."""

from hypothesis import given
from hypothesis import strategies as st

from infnet_rec.console import aligned, format_bytes

CELLS = st.sampled_from(["", "a", "1.50", "-", "two words", " indented", "12,345", "1e5", "None", "< 0.1 %", "é"])


@given(data=st.data(), num_columns=st.integers(1, 5), num_rows=st.integers(1, 6))
def test_columns_are_padded_to_their_widest_cell_and_nothing_else_changes(
    data: st.DataObject, num_columns: int, num_rows: int
) -> None:
    rows = [[data.draw(CELLS) for _ in range(num_columns)] for _ in range(num_rows)]
    left = data.draw(st.sets(st.integers(0, num_columns - 1)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    expected = [
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    assert aligned(rows, left) == expected


def test_bytes_are_said_in_the_unit_that_reads_best() -> None:
    texts = [format_bytes(n) for n in (0, 999, 1000, 1024, 1 << 20, 1.5 * (1 << 30), 1 << 50)]
    assert texts == ["0 B", "999 B", "0.977 KiB", "1 KiB", "1 MiB", "1.5 GiB", "1.02e+03 TiB"]
