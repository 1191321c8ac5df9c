"""bpfseal: tracing programs that are generated and signed on the fly.

The façade is lazy: importing it costs nothing but this file.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it; `typing` takes longer to import than most commands to run
if TYPE_CHECKING:
    from typing import Any

    from bpfseal.errors import BpfsealError as BpfsealError
    from bpfseal.runtime.api import Session as Session
    from bpfseal.runtime.api import trace as trace

__version__ = "0.1.0"

_LAZY = {
    "trace": "bpfseal.runtime.api",
    "Session": "bpfseal.runtime.api",
    "BpfsealError": "bpfseal.errors",
}


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'bpfseal' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(module), name)


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext bpfseal`."""
    from bpfseal.runtime.notebook import load_ipython_extension as load

    load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """`%unload_ext bpfseal`."""
    from bpfseal.runtime.notebook import unload_ipython_extension as unload

    unload(shell)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
