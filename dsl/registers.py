"""Names of registers, as reg() takes them, in the order in which a stopped program's are in memory."""

from __future__ import annotations

# struct pt_regs, arch/x86/include/asm/ptrace.h
X86_64 = (
    "r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si", "di",
    "orig_ax", "ip", "cs", "flags", "sp", "ss",
)  # fmt: skip
