"""The double of cryoSPARC 5 has the interface of the installed client, so it cannot drift from it."""

from __future__ import annotations

import inspect

from double_v5 import Operations, handlers, interface


def test_each_operation_takes_what_the_stub_says() -> None:
    stub = interface()
    assert len(stub) > 300  # the whole interface was read
    for name, handler in handlers(Operations.__new__(Operations)).items():
        ours = inspect.signature(handler).parameters
        theirs = list(stub[name].parameters.values())[1:]
        takes_rest = any(parameter.kind is parameter.VAR_KEYWORD for parameter in ours.values())
        named = [entry for entry in ours.values() if entry.kind is not entry.VAR_KEYWORD]
        positional = [entry.name for entry in theirs if entry.kind is not entry.KEYWORD_ONLY]
        found = [entry.name for entry in named if entry.kind is not entry.KEYWORD_ONLY]
        assert found == positional, name
        keywords = {entry.name for entry in theirs if entry.kind is entry.KEYWORD_ONLY}
        own = {entry.name for entry in named if entry.kind is entry.KEYWORD_ONLY}
        assert own <= keywords, name
        assert takes_rest or own == keywords, name
