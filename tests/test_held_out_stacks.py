"""The table of errors by the size of a stack."""

from __future__ import annotations

from held_out_stacks import ALONE, OF_STACK, SIZES, markdown


def test_the_table_shows_geometric_means_and_marks_the_smallest_of_a_size() -> None:
    rows = [
        {"structure": name, "condition": "white", "snr": 0.1, "box_px": 64, "images": size}
        | {ALONE: factor * 0.3, OF_STACK[0]: factor * 0.2, OF_STACK[1]: factor * filtered}
        for name, factor in (("1abc", 0.5), ("2abc", 2.0))
        for size, filtered in zip(SIZES, (0.4, 0.1, 0.2), strict=True)
    ]
    last = markdown(rows).splitlines()[-1]
    assert last == (
        "| white | 0.1 | 64 | 0.300 | **0.200** | 0.200 | **0.200** | 0.400 | **0.100** | **0.200** |"
    )
