"""Functions of the language by name: which module translates them."""

from __future__ import annotations

from bpfseal.compiler import addresses, events, functions, map_functions, network, strings, system
from bpfseal.compiler.gen import ADDRESSES, MEMORIES, SCALARS, Gen, Memory, Scalar, Statement, impossible, register_type
from bpfseal.compiler.ir import PTR, Value
from bpfseal.dsl import typed
from bpfseal.dsl.types import size_of

_SCALARS: dict[str, Scalar] = {
    **addresses.SCALARS,
    **network.SCALARS,
    **strings.SCALARS,
    **system.SCALARS,
    "has_key": map_functions.has_key,
    "find": map_functions.find,
    "delete": map_functions.delete,
    "len": system.length,
    "external": functions.call_external,
}
_MEMORIES: dict[str, Memory] = {
    **addresses.MEMORIES,
    **network.MEMORIES,
    **strings.MEMORIES,
    **system.MEMORIES,
    "zeroed": lambda g, node, target, clean: g.clear(target, size_of(node.type)),
}
_EFFECTS: dict[str, Statement] = {**events.EFFECTS, **system.EFFECTS, **strings.EFFECTS}


def effect(g: Gen, node: typed.Call) -> bool:
    """Translate a call that is made for its effect; False if it has a value like any other."""
    make = _EFFECTS.get(node.name)
    if make is None:
        return False
    make(g, node)
    return True


def _scalar(g: Gen, node: typed.Call) -> Value:
    make = _SCALARS.get(node.name)
    if make is None:
        raise impossible(f"a call of {node.name}()")
    value = make(g, node)
    wanted = register_type(node.type)
    if value.type == wanted:
        return value
    return g.fn.pointer(value) if wanted == PTR else g.fn.integer(value, wanted)


def _memory(g: Gen, node: typed.Call, target: Value, clean: bool) -> None:
    make = _MEMORIES.get(node.name)
    if make is None:
        raise impossible(f"a call of {node.name}()")
    make(g, node, target, clean)


def _address(g: Gen, node: typed.Call) -> Value | None:
    if node.name == "zeroed":
        from bpfseal.compiler.memory import zeros

        return zeros(g, size_of(node.type))
    return None


SCALARS[typed.Call] = _scalar
MEMORIES[typed.Call] = _memory
ADDRESSES[typed.Call] = _address

user_symbol = addresses.store_user_symbol
