"""The table of errors by the size of a stack."""

from __future__ import annotations

from held_out_stacks import ALONE, OF_STACK, SIZES, markdown


def test_the_table_shows_geometric_means_and_marks_the_smallest_of_a_size() -> None:
    stack, of_map, wiener = OF_STACK
    rows = [
        {"structure": name, "condition": "white", "snr": 0.1, "box_px": 64, "images": size}
        | {ALONE: factor * 0.3, stack: factor * 0.2, wiener: factor * filtered}
        for name, factor in (("1abc", 0.5), ("2abc", 2.0))
        for size, filtered in zip(SIZES, (0.4, 0.1, 0.2), strict=True)
    ]
    beginning = "| white | 0.1 | 64 | 0.300 | **0.200** | 0.200 | **0.200** |"
    assert markdown(rows).splitlines()[-1] == beginning + "  |  |  | 0.400 | **0.100** | **0.200** |"
    # a way that is not there for all structures has no mean
    rows[0][of_map] = rows[1][of_map] = rows[4][of_map] = 0.05
    assert markdown(rows).splitlines()[-1] == beginning + "  | **0.050** |  | 0.400 | 0.100 | **0.200** |"
