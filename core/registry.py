"""Doors for others: networks, noise finders and metrics by name, cryohush's own and other packages'.

A package offers its own as entry points, so that their names in a configuration or a command line find them::

    [options.entry_points]
    cryohush.networks =
        my_unet = my_package.networks:MyUNet

What is not offered can be named by its place, `my_package.networks:MyUNet`. Nothing is imported before it is
asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from .errors import ConfigurationError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Things of one kind by their names; `module:object` is a name, too.

    A name of cryohush's own means that one, whatever other packages offer.

    Parameters
    ----------
    kind
        What they are, for messages: `network`.
    own
        Those of cryohush: the things, or where they are (`module:object`), which is imported when asked for.
    group
        Entry points at which other packages offer theirs; None has no door.
    """

    def __init__(self, kind: str, own: Mapping[str, T | str], group: str | None = None) -> None:
        self.kind, self.group, self._own = kind, group, dict(own)

    def __getitem__(self, name: str) -> T:
        """
        Raises
        ------
        KeyError
            There is none of that name.
        ConfigurationError
            There is one, but it cannot be imported; or two packages offer it.
        """
        found: T
        if name in self._own:
            own = self._own[name]
            found = self._imported(name, own) if isinstance(own, str) else own
        elif is_place(name) and self.group is not None:
            found = self._imported(name, name)
        else:
            found = self._imported(name, self._offered()[name].value)
        return found

    def __contains__(self, name: object) -> bool:
        known = name in self._own or name in self._offered()
        return known or (self.group is not None and is_place(str(name)))

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._own, *self._offered()]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def is_own(self, name: str) -> bool:
        """Whether it is one of cryohush's."""
        return name in self._own

    def find(self, name: str, key: str) -> T:
        """The thing that a configuration names.

        Parameters
        ----------
        name
            Its name.
        key
            Where it is named: `network.name`.

        Raises
        ------
        ConfigurationError
            There is none of that name, it cannot be imported, or two packages offer it.
        """
        try:
            return self[name]
        except KeyError:
            raise ConfigurationError(f"{key}: {self.expected(name)}") from None

    def expected(self, name: str) -> str:
        """What to say of a name that there is not."""
        place = ", or its place as in my_package.my_module:name" if self.group else ""
        return f"expected one of {', '.join(self)}{place}, not {name}."

    def places(self) -> set[str]:
        """Where all things are that other packages offer."""
        return {point.value for point in self._offered().values()}

    def _offered(self) -> dict[str, EntryPoint]:
        if self.group is None:
            return {}
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            other = found.setdefault(point.name, point)
            if other.value != point.value:
                packages = " and ".join(str(one.dist.name if one.dist else one) for one in (other, point))
                raise ConfigurationError(
                    f"the {self.kind} {point.name} is offered by {packages}: uninstall one of them, or name "
                    f"{other.value} or {point.value}."
                )
        return found

    def _imported(self, name: str, place: str) -> Any:
        module, _, path = place.partition(":")
        try:
            found: Any = importlib.import_module(module)
        except Exception as error:  # whatever a stranger's module does
            raise ConfigurationError(
                f"the {self.kind} {name} cannot be imported from {module}: {type(error).__name__}: {error}"
            ) from error
        for part in path.split("."):
            if not hasattr(found, part):
                raise ConfigurationError(f"the {self.kind} {name}: {module} has no {path}.")
            found = getattr(found, part)
        return found


def is_place(name: str) -> bool:
    """Whether a name is that of a place, `module:object`, and not of an entry."""
    module, colon, path = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in f"{module}.{path}".split("."))
