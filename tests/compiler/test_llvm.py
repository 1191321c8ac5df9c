"""The short way into LLVM gives what llvmlite's own interface gives."""

from __future__ import annotations

import pytest

from bpfseal.compiler import llvm, llvm_direct

MODULE = f"""
target triple = "{llvm.TRIPLE}"
target datalayout = "{llvm.DATA_LAYOUT}"
@m0 = external global [0 x i8]
define i64 @p0(ptr %ctx) section ".f.p0" {{
  %key = alloca i64
  store i64 1, ptr %key
  %found = call ptr inttoptr (i64 1 to ptr)(ptr @m0, ptr %key)
  %none = icmp eq ptr %found, null
  br i1 %none, label %end, label %hit
hit:
  store i64 7, ptr %found
  br label %end
end:
  ret i64 0
}}
"""


@pytest.fixture
def direct() -> llvm_direct.Direct:
    found = llvm._quick()
    if found is None:
        pytest.skip("this version of llvmlite is used through its public interface")
    return found


def test_same_object(direct: llvm_direct.Direct) -> None:
    assert direct.compile(MODULE) == llvm.compile_with_llvmlite(MODULE)


def test_sections(direct: llvm_direct.Direct) -> None:
    sections = dict(direct.sections(direct.compile(MODULE)))
    assert len(sections[".f.p0"]) % 8 == 0
    assert sections[".rel.f.p0"]
    assert b"m0\0" in sections[".strtab"]


def test_bad_module() -> None:
    with pytest.raises(llvm.LlvmError, match="expected"):
        llvm.compile_module("define nonsense")


def test_broken_module() -> None:
    """What parses but is wrong is refused before LLVM works on it."""
    with pytest.raises(llvm.LlvmError):
        llvm.compile_module("define i64 @f() { %a = add i64 %a, 1 ret i64 %a }")
