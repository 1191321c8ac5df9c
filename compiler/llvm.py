"""LLVM: text of a module to a BPF object file.

Only what the BPF back end needs is initialised, once per process. CPU v3, which every kernel that can run our programs
has, with the one addition of v4 that all of them understand as well: stores of immediate values.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from bpfseal.errors import BpfsealError

if TYPE_CHECKING:
    from llvmlite.binding import TargetMachine

TRIPLE: Final = "bpf"
DATA_LAYOUT: Final = "e-m:e-p:64:64-i64:64-i128:128-n32:64-S128"

# v4 without what kernels before 6.6 do not know.
_CPU: Final = "v4"
_OPTIONS: Final = (
    "-disable-ldsx",
    "-disable-movsx",
    "-disable-bswap",
    "-disable-sdiv-smod",
    "-disable-gotol",
    "-disable-load-acq-store-rel",
    # Addresses that are counted up by themselves have no bound that the verifier can see.
    "-disable-lsr",
    # The verifier's limit is checked on the result (link.stack_depth), where it can be told properly: LLVM would
    # end the process.
    "-bpf-stack-size=65536",
)


class LlvmError(BpfsealError):
    """LLVM does not take the text: a mistake of the code generator, never of the user."""


@cache
def _machine() -> TargetMachine:
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    for option in _OPTIONS:
        llvm.set_option("", option)
    return llvm.Target.from_triple(TRIPLE).create_target_machine(cpu=_CPU, opt=2, reloc="default", codemodel="default")


def compile_module(text: str) -> bytes:
    """The object file of a module's text, optimised. Raises LlvmError."""
    from bpfseal.compiler.llvm_direct import DirectError, direct

    quick = direct(TRIPLE, _CPU, _OPTIONS)
    if quick is None:
        return compile_with_llvmlite(text)
    try:
        return quick.compile(text)
    except DirectError as error:
        raise LlvmError(f"internal error: bad code for LLVM: {str(error).strip()}") from None


def sections(data: bytes) -> list[tuple[str, bytes]]:
    """(name, contents) of an object file's sections, in order, the null section included."""
    from bpfseal.compiler.llvm_direct import direct

    quick = direct(TRIPLE, _CPU, _OPTIONS)
    if quick is not None:
        return quick.sections(data)
    from llvmlite.binding import ObjectFileRef

    object = ObjectFileRef.from_data(data)
    return [((s.name() or b"").decode(), s.data() if s.size() else b"") for s in object.sections()]


def compile_with_llvmlite(text: str) -> bytes:
    """As `compile_module`, through llvmlite's public interface."""
    import llvmlite.binding as llvm

    machine = _machine()
    module = _parsed(text)
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = False
    options.slp_vectorization = False
    options.loop_unrolling = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    with module:
        found: bytes = machine.emit_object(module)
    return found


def _parsed(text: str) -> Any:
    import llvmlite.binding as llvm

    try:
        module = llvm.parse_assembly(text)
        module.verify()
    except RuntimeError as error:
        raise LlvmError(f"internal error: bad code for LLVM: {str(error).strip()}") from None
    return module


def optimised_text(text: str) -> str:
    """The module's text after optimisation, for people."""
    import llvmlite.binding as llvm

    machine = _machine()
    module = _parsed(text)
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    builder.getModulePassManager().run(module, builder)
    return str(module)
