"""Typed script to Bundle: LLVM IR, BPF object, kernel types, compile cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bpfseal.compiler.build import compile
    from bpfseal.compiler.options import Options

__all__ = ["Options", "compile"]


def __getattr__(name: str) -> Any:
    """The code generator is imported when it is used: the path of a cached script has no need of it."""
    if name == "compile":
        from bpfseal.compiler.build import compile

        return compile
    if name == "Options":
        from bpfseal.compiler.options import Options

        return Options
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
