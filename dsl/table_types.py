"""Row types of the table, and the groups of probe kinds its rows name."""

from __future__ import annotations

from msgspec import Struct

from bpfseal.dsl.types import Type

ANYWHERE: frozenset[str] = frozenset()
"""An empty group: every kind of probe."""

# Kinds whose program context is (or starts with) pt_regs.
REGISTERS = frozenset(
    {"kprobe", "kretprobe", "uprobe", "uretprobe", "usdt", "watchpoint"}
    | {"profile", "interval", "software", "hardware"}
)
USER_CODE = frozenset({"uprobe", "uretprobe", "usdt"})
TRACING = frozenset({"fentry", "fexit", "iter", "lsm", "rawtracepoint"})


class BuiltinSpec(Struct, frozen=True):
    """A value named by a bare word, with or without `()`.

    type    its type; None when `rule` decides
    rule    how the checker resolves it: "" plain (a `typed.Builtin` of `type`), else see `check.names`
    typed   what the code generator gets, in words
    probes  kinds of probes that have it, empty for all
    doc     one line for the reference
    """

    name: str
    type: Type | None
    doc: str
    rule: str = ""
    typed: str = ""
    probes: frozenset[str] = ANYWHERE


class FunctionSpec(Struct, frozen=True):
    """A function.

    signatures  as the reference shows them
    arguments   (least, most) number of arguments; most -1 for any number
    typed       exactly what the code generator gets: `typed.Call` of this name unless said otherwise, with `args`,
                `options`, `map`, `key` and result type
    mode        "sync" (done by the program), "async" (an event, done by the client), "compile" (a constant)
    action      `compiler.layout.EventLayout.action` of an asynchronous function
    unsafe      needs --unsafe
    probes      kinds of probes that allow it, empty for all
    """

    name: str
    signatures: tuple[str, ...]
    arguments: tuple[int, int]
    doc: str
    typed: str
    mode: str = "sync"
    action: str = ""
    unsafe: bool = False
    probes: frozenset[str] = ANYWHERE


class ConfigSpec(Struct, frozen=True):
    """A variable of the config block. `kind`: "int", "bool", "string", "choice" (then `choices` are the values,
    compared in lower case unless `exact`)."""

    name: str
    kind: str
    default: int | bool | str
    doc: str
    choices: tuple[str, ...] = ()
    exact: bool = False
