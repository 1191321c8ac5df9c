"""Typed script to Bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bpfseal.compiler import layout, link, mapping, modules
from bpfseal.compiler.gen import Gen
from bpfseal.compiler.ir import Function
from bpfseal.compiler.options import Options
from bpfseal.compiler.unit import Declared, Unit
from bpfseal.dsl.source import render
from bpfseal.dsl.typed import TypedScript
from bpfseal.errors import BpfsealError
from bpfseal.signer.bundle import BUNDLE_VERSION, Attributes, Bundle, ProgramSpec

if TYPE_CHECKING:
    from bpfseal.compiler.kernel import KernelTypes
    from bpfseal.compiler.plan import Program

__all__ = ["Function", "Gen", "compile"]


def compile(script: TypedScript, *, kernel: KernelTypes | None = None, options: Options | None = None) -> Bundle:
    """Everything that is to be loaded for a script. Same script, same kernel: same bytes.

    Raises BpfsealError for what cannot be compiled, such as a program that needs more stack than there is.
    """
    options = options if options is not None else Options()
    limit = int(script.config.get("on_stack_limit", 32))
    deepest = 0
    for on_stack, budget in ((limit, 320), (min(limit, 16), 128), (0, 0)):
        unit = Unit(script, options, kernel)
        unit.on_stack_limit, unit.stack_budget = on_stack, budget
        programs, linked = _attempt(unit)
        deepest = max((link.stack_depth(found.code) for found in linked), default=0)
        if deepest <= link.STACK_LIMIT:
            return _bundle(unit, programs, linked)
    raise BpfsealError(
        f"a probe needs {deepest} bytes of stack, the kernel gives {link.STACK_LIMIT}",
        hint="use fewer variables in one probe, or fewer values in one expression",
    )


def _attempt(unit: Unit) -> tuple[list[Program], list[link.Linked]]:
    from bpfseal.compiler import llvm

    for definition in unit.script.maps:
        mapping.declare(unit, definition)
    programs = modules.write(unit)
    functions, declarations = link.read_object(llvm.compile_module(modules.text(unit)))
    unit.declared = link.parse_declarations(declarations)
    if unit.script.c_files:
        from bpfseal.compiler import external

        external.add(unit, functions)
    return programs, [link.link(program.name, functions, unit.kfunc_id) for program in programs]


def _bundle(unit: Unit, programs: list[Program], linked: list[link.Linked]) -> Bundle:
    btf, infos = b"", [b""] * len(programs)
    maps = unit.finish_maps()
    if unit.value_types or any(found.callbacks for found in linked):
        from bpfseal.compiler import btfgen

        writer = btfgen.Writer()
        maps = btfgen.map_types(unit, maps, writer)
        btf, infos = btfgen.describe(unit, programs, linked, writer)
    specs = tuple(
        _program(unit, program, found, info) for program, found, info in zip(programs, linked, infos, strict=True)
    )
    script = unit.script
    reader = layout.Reader(
        version=layout.READER_VERSION,
        maps=tuple(unit.layouts),
        events=tuple(unit.events),
        probes=tuple(unit.probes),
        ring=unit.ring,
        control=unit.control,
        counters=unit.counters,
        session=unit.session,
        stacks=dict(sorted(unit.stacks.items())),
        deferred=unit.deferred,
        work=tuple(index for index, name in sorted(unit.value_types.items()) if name == "bpf_task_work"),
        formats=tuple(unit.formats),
        unwind=unit.unwind or (),
        enums={name: dict(sorted(values.items())) for name, values in sorted(script.enums.items())},
        config=dict(sorted(script.config.items())),
        warnings=tuple(render(d, list(script.sources)) for d in script.warnings),
    )
    return Bundle(
        version=BUNDLE_VERSION,
        programs=specs,
        maps=maps,
        btf=btf,
        source=script.sources[0].text if script.sources else "",
        reader=layout.encode(reader),
    )


def _program(unit: Unit, program: Program, linked: link.Linked, info: bytes) -> ProgramSpec:
    return ProgramSpec(
        name=_kernel_name(program),
        type=program.type,
        insns=linked.code,
        declared=_attributes(unit, linked),
        attach=program.attach,
        expected_attach_type=program.expected,
        license=str(unit.script.config.get("license", "GPL")),
        attach_btf=program.attach_btf,
        attach_btf_id=program.attach_btf_id,
        attach_module=program.attach_module,
        func_info=info,
    )


def _kernel_name(program: Program) -> str:
    """At most 15 characters that BPF_PROG_LOAD takes."""
    text = program.points[0].function or program.points[0].name
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in text)[:15] or "probe"


def _attributes(unit: Unit, linked: link.Linked) -> Attributes:
    """What the program's functions were written to do, together."""
    total = Declared()
    for name, _ in linked.functions:
        part = unit.declared[name]
        total.helpers |= part.helpers
        total.kfuncs |= part.kfuncs
        for index, operations in part.maps.items():
            total.use(index, *operations)
    return Attributes(
        insns=len(linked.code) // 8,
        subprograms=len(linked.functions) - 1,
        helpers=tuple(sorted(total.helpers)),
        kfuncs=tuple(sorted(total.kfuncs)),
        maps=tuple((index, tuple(sorted(done))) for index, done in sorted(total.maps.items())),
    )
