"""cryohush: denoise cryo-EM particles and micrographs, from RELION, cryoSPARC, the shell, or Python.

The functions named here are those of `cryohush.core.api`, imported when they are first used, so that
`import cryohush` takes no time.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .core.api import (
        denoise,
        denoise_micrograph,
        list_models,
        load_model,
        read_ctf,
        read_images,
        read_table,
        train,
    )

__version__ = "0.1.0"
__all__ = [
    "denoise",
    "denoise_micrograph",
    "list_models",
    "load_model",
    "read_ctf",
    "read_images",
    "read_table",
    "train",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        from .core import api

        return getattr(api, name)
    raise AttributeError(f"module 'cryohush' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
