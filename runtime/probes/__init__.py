"""Probe providers: what attach points there are, what they are called and what their arguments are.

One module per kind (or pair of kinds), each with a `PROVIDER`; only the modules of the kinds in use are imported.
What a `dsl.env.Point` holds, by kind (members that are not named are empty; numbers in `params` are small facts that
`Attach.params` takes over under the same names where they matter for attaching):

    begin end            –
    test bench           function: the name
    self                 category "signal", function "SIGUSR1", number: the signal
    interval profile     number: as written; params unit, and period (ns) or frequency (Hz)
    software hardware    function: the event's main name; number: the count in force; params type, config as for
                         perf_event_open(2)
    tracepoint           category, function; params nr: system call number for syscalls:sys_{enter,exit}_* where it is
                         known (then Args.context is "syscall" or "syscall_exit"); btf: type that a tp_btf program can
                         attach to for the same events, with the other arguments (for programs that use none)
    rawtracepoint        module, function; params btf: name of the type that a tp_btf program attaches to
    kprobe kretprobe     module ("" for the kernel itself), function; number: offset in bytes, or the address when
                         function is empty; params multi 1: kprobe_multi can take it, unlisted 1: --unsafe
                         tries although the kernel lists no such function
    fentry fexit         module ("vmlinux" for the kernel itself), function
    uprobe uretprobe     module: the file, function: its symbol as in the symbol table ("" for a bare address);
                         number: offset in the file; params address: virtual address, offset: from the symbol,
                         lang "cpp"
    usdt                 module: the file, category: provider, function: name; number: offset in the file; params
                         semaphore: offset in the file of the counter or 0, location: index among the probe's places
    watchpoint           number: address; params length, mode (1 read, 2 write, 4 execute, or-ed)
    iter                 function: the iterator; params pin: path
    lsm                  function: the hook
    xdp tc               function: the interface; params egress 1/0 (tc)

Arguments: `Args.context` is "ctx" (offset in the context), "argument" (u64[] context), "registers" (struct pt_regs;
the fields, where DWARF knows them, have `argument` N for the N-th integer argument), "syscall", "syscall_exit",
"usdt", "none". In "syscall" field `argument` N < 6 is system call argument N, in "syscall_exit" 0 is the result; 6 is
the system call's number in both. In "usdt" Args.extra has "argN" → canonical location, see `runtime.probes.usdt`.
In "packet" the fields are those of `runtime.probes.network`; Args.extra["ethernet"] 1: packets start with an Ethernet
header. For fentry, fexit and lsm Args.extra["arguments"] is the number of words before the result in the context,
"unknown" where it has to be asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Final, NamedTuple

from bpfseal.errors import BpfsealError

if TYPE_CHECKING:  # a listing needs no types of the language, and importing them takes longer than to list
    from bpfseal.dsl.env import Args, AttachSpec, Point
    from bpfseal.runtime.probes.world import World


class ProbeError(BpfsealError):
    """An attach point that cannot be, or whose source of names cannot be read."""


class AbsentError(ProbeError):
    """What an attach point names is not on this machine now, but might be on another."""

    absent = True  # see dsl.env.Environment.expand


def _no_arguments(world: World, kind: str, name: str) -> Iterable[str]:
    return ()


class Provider(NamedTuple):
    """What one kind can do.

    expand    the points a spec names, empty for none
    args      arguments at a point
    names     (world, kind, pattern) all names of a kind for listings, without "kind:", in listing order; of `pattern`,
              the text behind the kind, only files are looked at: the caller matches
    describe  (world, kind, name) for verbose listings: declarations of the arguments of one listed name
    """

    expand: Callable[[World, AttachSpec], Sequence[Point]]
    args: Callable[[World, Point], Args]
    names: Callable[[World, str, str], Iterable[str]]
    describe: Callable[[World, str, str], Iterable[str]] = _no_arguments


# fmt: off
MODULES: Final = {
    "begin": "special", "end": "special", "self": "special", "test": "special", "bench": "special",
    "interval": "timed", "profile": "timed",
    "software": "counted", "hardware": "counted",
    "tracepoint": "tracepoint",
    "rawtracepoint": "rawtracepoint",
    "kprobe": "kprobe", "kretprobe": "kprobe",
    "fentry": "fentry", "fexit": "fentry",
    "uprobe": "uprobe", "uretprobe": "uprobe",
    "usdt": "usdt",
    "watchpoint": "watchpoint",
    "iter": "iter",
    "lsm": "lsm",
    "xdp": "network", "tc": "network",
}
# fmt: on


@cache
def provider(kind: str) -> Provider:
    """The provider of a canonical kind. Raises ProbeError for unknown ones."""
    module = MODULES.get(kind)
    if module is None:
        raise ProbeError(f"there is no probe type '{kind}'")
    found = import_module(f"bpfseal.runtime.probes.{module}").PROVIDER
    assert isinstance(found, Provider)
    return found


def registers() -> Args:
    """Arguments of a probe whose context is struct pt_regs."""
    from bpfseal.dsl.env import Args

    return Args(None, "registers")


def nothing() -> Args:
    """Arguments of a probe that has none."""
    from bpfseal.dsl.env import Args

    return Args(None)


def is_wild(pattern: str) -> bool:
    """Whether a name is a pattern: `*` is the only sign that stands for others."""
    return "*" in pattern


def matcher(pattern: str) -> Callable[[str], bool]:
    """A test for names: `*` stands for any characters, also none."""
    if "*" not in pattern:
        return pattern.__eq__
    import re

    compiled = re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL)
    return lambda name: compiled.fullmatch(name) is not None


def select(pattern: str, names: Iterable[str]) -> Iterator[str]:
    """Those of `names` that match, in their order."""
    return filter(matcher(pattern), names)
