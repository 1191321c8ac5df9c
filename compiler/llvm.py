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

    from bpfseal.compiler.llvm_direct import Direct

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


# In place of the -O2 pipeline, which takes three times as long for half a percent fewer instructions: our code has
# neither calls to inline nor loops worth work.
_PASSES: Final = ("SROA", "SimplifyCFG", "InstCombine", "NewGVN", "DSE", "ADCE", "SimplifyCFG")
_NAMES: Final = {
    "SROA": "sroa",
    "SimplifyCFG": "simplify_cfg",
    "InstCombine": "instruction_combine",
    "NewGVN": "new_gvn",
    "DSE": "dead_store_elimination",
    "ADCE": "aggressive_dce",
}


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


def _quick() -> Direct | None:
    from bpfseal.compiler.llvm_direct import direct

    return direct(TRIPLE, _CPU, _OPTIONS, _PASSES)


def compile_module(text: str) -> bytes:
    """The object file of a module's text, optimised. Raises LlvmError."""
    from bpfseal.compiler.llvm_direct import DirectError

    quick = _quick()
    if quick is None:
        return compile_with_llvmlite(text)
    try:
        return quick.compile(text)
    except DirectError as error:
        raise LlvmError(f"internal error: bad code for LLVM: {str(error).strip()}") from None


def sections(data: bytes) -> list[tuple[str, bytes]]:
    """(name, contents) of an object file's sections, in order, the null section included."""
    quick = _quick()
    if quick is not None:
        return quick.sections(data)
    from llvmlite.binding import ObjectFileRef

    object = ObjectFileRef.from_data(data)
    return [((s.name() or b"").decode(), s.data() if s.size() else b"") for s in object.sections()]


def compile_with_llvmlite(text: str) -> bytes:
    """As `compile_module`, through llvmlite's public interface."""

    machine = _machine()
    module = _parsed(text)
    _optimise(module)
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


def _optimise(module: Any) -> None:
    import llvmlite.binding as llvm

    builder = llvm.create_pass_builder(_machine(), llvm.create_pipeline_tuning_options(speed_level=2))
    passes = llvm.create_new_module_pass_manager()
    for name in _PASSES:
        getattr(passes, f"add_{_NAMES[name]}_pass")()
    passes.run(module, builder)


def optimised_text(text: str) -> str:
    """The module's text after optimisation, for people."""
    module = _parsed(text)
    _optimise(module)
    return str(module)
