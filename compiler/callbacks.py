"""Subprograms that the kernel calls back: loops over maps."""

from __future__ import annotations

from bpfseal.compiler.ir import I64, PTR, Function, Value, const
from bpfseal.compiler.unit import Declared, Unit

_PARAMETERS = (Value(PTR, "%map"), Value(PTR, "%key"), Value(PTR, "%value"), Value(PTR, "%context"))


def empty_callback(unit: Unit) -> Value:
    """A callback that goes on to the next element."""
    name = "each_nothing"
    if name not in unit.declared:
        fn = Function(name, I64, _PARAMETERS, "internal ", f'section ".f.{name}" ')
        fn.ret(const(0))
        unit.add_function(fn, Declared())
    return Value(PTR, f"@{name}")
