"""YAML as configurations need it: mappings, lists, text, numbers, yes and no; each key once.

What YAML has beyond that is refused or text: dates are text, tags are refused, and aliases (`*name`) may not
swell a few lines to millions of values.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_BYTES = 4 * 2**20
MAX_VALUES = 200_000
MAX_DEPTH = 50
# What other programs take for a whole number.
MAX_INTEGER = 2**63

_TAG = "tag:yaml.org,2002:"
_KINDS = {"null": "nothing", "bool": "yes or no", "int": "a whole number", "float": "a number"}


def parse(text: str) -> Any:
    """Return what `text` says: a dict with text as keys, a list, text, a number, a bool or None.

    Raises
    ------
    yaml.YAMLError
        If it is not YAML, nests too deeply, holds too much, names a key twice or asks for a Python object.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _problem(text: str, node: Node) -> ConstructorError:
    return ConstructorError(None, None, text, node.start_mark)


def _count(node: Node, known: dict[int, int]) -> int:
    """Return how many values `node` stands for; aliases are the same node in several places."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise _problem("a value that holds itself", node)
        return known[id(node)]
    known[id(node)] = 0
    inner: list[Node] = []
    if isinstance(node, SequenceNode):
        inner = node.value
    elif isinstance(node, MappingNode):
        inner = [part for pair in node.value for part in pair]
    known[id(node)] = total = 1 + sum(_count(part, known) for part in inner)
    if total > MAX_VALUES:
        raise _problem(f"more than {MAX_VALUES} values", node)
    return total


class _Loader(yaml.SafeLoader):
    """PyYAML's loader for plain data, stricter where it is surprising."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ConstructorError(None, None, f"more than {MAX_DEPTH} levels deep", self.get_mark())
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_plain(self, node: ScalarNode) -> Any:
        """Return the value of one of YAML's plain types."""
        kind = node.tag.removeprefix(_TAG)
        too_large = _problem(f"the whole number {str(node.value)[:20]}… is too large", node)
        if kind == "int" and len(node.value) > 4 * len(str(MAX_INTEGER)):  # all bits, with underscores
            raise too_large
        try:
            value = getattr(self, f"construct_yaml_{kind}")(node)
        except (ValueError, KeyError, IndexError) as error:
            raise _problem(f"expected {_KINDS.get(kind, kind)}, found {node.value[:80]!r}", node) from error
        if kind == "int" and abs(value) >= MAX_INTEGER:
            raise too_large
        return value

    def construct_list(self, node: SequenceNode) -> list[Any]:
        """Return a list."""
        if not isinstance(node, SequenceNode):
            raise _problem("a tag that does not fit its value", node)
        return [self.construct_object(part, deep=True) for part in node.value]

    def construct_keys(self, node: MappingNode) -> dict[Hashable, Any]:
        """Return a mapping. Keys are text as it is written, also `yes` and `1`."""
        if not isinstance(node, MappingNode):
            raise _problem("a tag that does not fit its value", node)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise _problem("expected a word as the key, found a list or mapping", key)
            line = key.start_mark.line + 1
            if key.value in seen and key.tag != f"{_TAG}merge":
                raise _problem(f"the key {key.value!r} stands twice, first in line {seen[key.value]}", key)
            seen[key.value] = line
        self.flatten_mapping(node)  # `<<: *name`
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}

    def refuse(self, node: Node) -> Any:
        """Refuse a tag such as `!!python/object` or `!mine`."""
        raise _problem(f"the tag {node.tag[:80]!r} is of no use here; leave it out", node)


# Without dates, which no configuration has: 2020-13-41 is text, not an error.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {}
for _kind in ("null", "bool", "int", "float", "str"):
    _Loader.add_constructor(f"{_TAG}{_kind}", _Loader.construct_plain)
_Loader.add_constructor(f"{_TAG}seq", _Loader.construct_list)
_Loader.add_constructor(f"{_TAG}map", _Loader.construct_keys)
_Loader.add_constructor(None, _Loader.refuse)
