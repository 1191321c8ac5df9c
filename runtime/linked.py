"""Which programs of a script their loader may attach, so that what is attached is what was sealed, and when.

The loader attaches before the client gets a hand on anything: before begin has run, before the client has written what
it knows about the session, before it follows the mappings of processes. Scripts that could tell the difference are
attached by the client; so are probes whose target the kernel does not take from the loaded program.
"""

from __future__ import annotations

from msgspec.structs import replace

from bpfseal.compiler.layout import Reader
from bpfseal.runtime.session_events import shows_addresses
from bpfseal.signer.bundle import Bundle, ProgramSpec
from bpfseal.signer.program_target import program_target


def link_in_loader(bundle: Bundle, reader: Reader) -> Bundle:
    """`bundle` with the programs marked that its loader attaches: all whose target is part of the load, or none."""
    points = [attach for program in bundle.programs for attach in program.attach]
    if (
        any(attach.phase == "begin" for attach in points)
        or reader.session >= 0
        or reader.deferred >= 0
        or reader.unwind
        or shows_addresses(reader)
    ):
        return bundle
    programs = tuple(replace(p, linked=True) if _can(p) else p for p in bundle.programs)
    return replace(bundle, programs=programs)


def _can(program: ProgramSpec) -> bool:
    if len(program.attach) != 1 or program_target(program.attach_module) is not None:
        return False
    (attach,) = program.attach
    return attach.kind == "trace" and attach.phase == "attach" and len(attach.cookies) <= 1
