"""YAML gives plain data or one error that says where and why."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cryohush.core.config.strict_yaml import MAX_DEPTH, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("# only a remark\n", None),
        ("a: 2020-13-41\nb: 2020-01-31", {"a": "2020-13-41", "b": "2020-01-31"}),
        ("1: x\nyes: y\nnull: z\n", {"1": "x", "yes": "y", "null": "z"}),
        ("a: &x {q: 1}\nb: {<<: *x, r: 2}\nc: *x", {"a": {"q": 1}, "b": {"q": 1, "r": 2}, "c": {"q": 1}}),
        ("a: [1, 2.5, no, ~, µ]", {"a": [1, 2.5, False, None, "µ"]}),
        ("a: 9223372036854775807", {"a": 2**63 - 1}),
    ],
)
def test_plain_data_are_read(text: str, expected: object) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3", "the key 'a' stands twice, first in line 1"),
        ("a:\n\tb: 1", "cannot start any token"),
        ("? [a]\n: 1", "expected a word as the key"),
        ("&a [*a]", "holds itself"),
        ("a: " + "9" * 5000, "whole number 99999999999999999999… is too large"),
        ("a: 0x" + "f" * 5000, "is too large"),
        ("a: -9223372036854775809", "is too large"),
        ("[" * (MAX_DEPTH + 1), "levels deep"),
        ("{a: " * 5000, "levels deep"),
        ("!!python/object/apply:os.system [ls]", "the tag .* is of no use here"),
        ("a: !!timestamp x", "the tag .* is of no use here"),
        ("a: !!bool x", "expected yes or no, found 'x'"),
        ("a: !!float .", "expected a number, found '.'"),
        ("a: 1\n---\nb: 2", "but found another document"),
        ("a: *b", "undefined alias 'b'"),
        ("a: \x00", "special characters are not allowed"),
    ],
)
def test_what_is_not_plain_data_is_told(text: str, problem: str) -> None:
    with pytest.raises(yaml.YAMLError, match=problem):
        parse(text)


def test_aliases_do_not_swell() -> None:
    lines = ["a0: &a0 [1, 1]"]
    lines += [f"a{number}: &a{number} [*a{number - 1}, *a{number - 1}]" for number in range(1, 60)]
    with pytest.raises(yaml.YAMLError, match="more than 200000 values"):
        parse("\n".join(lines))


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text("abcdefgh_- ", min_size=1, max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(PLAIN)
@settings(max_examples=200)
def test_what_is_written_as_yaml_is_read_again(data: object) -> None:
    assert parse(yaml.safe_dump(data, allow_unicode=True)) == data
