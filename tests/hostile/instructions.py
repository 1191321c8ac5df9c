"""Bundles whose bytecode is wrong."""

from __future__ import annotations

from bpfseal.signer import helpers as known
from bpfseal.signer.bundle import Attach, Bundle
from tests.hostile.case import IDS, Case
from tests.signer_analysis.kit import (
    COUNT,
    EXIT,
    RETURN,
    add,
    addi,
    atomic,
    bundle,
    call,
    callsub,
    declare,
    ja,
    jeqi,
    jne,
    jnei,
    kfunc,
    ld64,
    ldfunc,
    ldmap,
    ldvalue,
    ldx,
    lookup,
    mov,
    movi,
    program,
    raw,
    simple,
    st,
    stx,
)

KPROBE = Attach(kind="kprobe", probe="kprobe:vfs_read", target="vfs_read")
OTHER_KPROBE = Attach(kind="kprobe", probe="kprobe:commit_creds", target="commit_creds")
VFS_READ = 0xFFFFFFFF81234560


def bad(name: str, insns: bytes, rule: str, reason: str, *helpers: str) -> Case:
    return Case(name, lambda: simple(insns, *helpers), rule, reason)


def guarded(insns: bytes, attach: Attach = KPROBE) -> Bundle:
    declared = declare(insns, "get_func_ip", "map_lookup_elem", subprograms=9, maps=((0, ("read", "write")),))
    return bundle(program(insns, declared, type=known.KPROBE, attach=(attach,)))


def guard(skip: int) -> bytes:
    """`if (get_func_ip(ctx) != VFS_READ) return 0`, jumping over `skip` more slots to the exit: 4 slots."""
    return call("get_func_ip") + ld64(1, VFS_READ) + jne(0, 1, skip)


_BODY = lookup() + jeqi(0, 0, 2) + movi(1, 1) + atomic(0, 0, 1, 0)

_UNKNOWN_OPCODES = {
    "ld": raw(0x38),  # LD | ABS | DW
    "ldx": raw(0x21, 1, 1),  # LDX with mode ABS
    "ldx-sign-extended-u64": raw(0x99, 1, 1),
    "st": raw(0x42, 1),
    "stx": raw(0x23, 1, 1),
    "alu32": raw(0xE4, 1),
    "alu64": raw(0xF7, 1),
    "jmp": raw(0xF5),
    "jmp32-exit": raw(0x96),
    "st-arena": raw(0xA2, 1),
}

CASES = [
    bad("jump-into-ldimm64", ja(1) + ld64(1, 0) + RETURN, "jump", "instruction 0: jump into the second half"),
    bad("jump-out-backward", movi(0, 0) + jeqi(0, 0, -3) + EXIT, "jump", "instruction 1: jump to -1"),
    bad("jump-out-forward", jeqi(1, 0, 2) + RETURN, "jump", "jump to 3"),
    bad(
        "jump-into-subprogram",
        callsub(2) + jeqi(0, 0, 1) + EXIT + movi(0, 1) + EXIT,
        "jump",
        "outside the subprogram at 0..2",
    ),
    bad("fallthrough-end", movi(0, 0), "fallthrough", "neither exit nor jump"),
    bad("fallthrough-into-subprogram", callsub(1) + movi(0, 0) + RETURN, "fallthrough", "instruction 1"),
    bad("unreachable-tail", RETURN + RETURN, "unreachable", "instruction 2"),
    bad("unreachable-island", ja(2) + movi(0, 0) + ja(-2) + RETURN, "unreachable", "instruction 1"),
    bad("subprogram-never-called-back", ldfunc(1, 3) + RETURN + movi(0, 0) + EXIT, "unreachable", "instruction 4"),
    *(
        bad(f"unknown-opcode-{name}", insn + RETURN, "opcode", "instruction 0: unknown opcode")
        for name, insn in _UNKNOWN_OPCODES.items()
    ),
    bad("opcode-0", raw(0x00) + RETURN, "opcode", "unknown opcode 0x00"),
    bad("register-11", mov(11, 1) + RETURN, "register", "r11 does not exist"),
    bad("register-15-source", mov(1, 15) + RETURN, "register", "r15 does not exist"),
    bad("frame-pointer-written", movi(10, 0) + RETURN, "register", "frame pointer is read-only"),
    bad("frame-pointer-exchanged", atomic(1, 0, 10, 0xE1) + RETURN, "register", "frame pointer is read-only"),
    bad("reserved-reg", raw(0xB7, 0, 3) + EXIT, "reserved", "source register"),
    bad("reserved-reg-exit", movi(0, 0) + raw(0x95, 1), "reserved", "destination register"),
    bad("reserved-off", raw(0xB7, 0, 0, 4) + EXIT, "reserved", "offset"),
    bad("reserved-imm", raw(0x79, 0, 1, 0, 7) + EXIT, "reserved", "immediate"),
    bad("reserved-imm-move", raw(0xBF, 0, 1, 0, 7) + EXIT, "reserved", "immediate"),
    bad("ldimm64-cut-at-end", movi(0, 0) + raw(0x18, 1), "ld_imm64", "instruction 1: ld_imm64 is cut"),
    bad("ldimm64-second-half-not-zero", raw(0x18, 1) + movi(0, 0) + RETURN, "ld_imm64", "reserved fields"),
    bad("ldimm64-map-with-high-word", ld64(1, 0, 5, 1) + RETURN, "ld_imm64", "reserved fields"),
    bad("pseudo-map-fd", ld64(1, 3, 1) + RETURN, "pseudo", "raw map file descriptor"),
    bad("pseudo-map-value-fd", ld64(1, 3, 2, 0) + RETURN, "pseudo", "raw map file descriptor"),
    bad("pseudo-btf-id", ld64(1, IDS["jiffies"], 3) + RETURN, "policy", "kernel variable jiffies is not granted"),
    bad("pseudo-btf-id-of-a-type", ld64(1, IDS["task_struct"], 3) + RETURN, "pseudo", "is not a kernel variable"),
    bad("pseudo-btf-id-past-end", ld64(1, 9999, 3) + RETURN, "pseudo", "no BTF type 9999"),
    bad("pseudo-kind-7", ld64(1, 0, 7) + RETURN, "pseudo", "unknown kind 7"),
    bad("pseudo-call-kind-3", raw(0x85, 0, 3) + EXIT, "pseudo", "unknown kind 3"),
    bad("value-offset-past-end", ldvalue(1, 1, 64) + RETURN, "map-value", "offset 64 is past the value"),
    bad("value-offset-negative", ldvalue(1, 1, -8) + RETURN, "map-value", "is past the value"),
    bad("value-of-a-hash", ldvalue(1, 0) + RETURN, "map-value", "not an array of one"),
    bad("index-out-of-range", ldmap(1, 3) + RETURN, "map-index", "map index 3"),
    bad("index-negative", ldmap(1, 0xFFFFFFFF) + RETURN, "map-index", "map index -1"),
    bad("call-unknown-helper", call(4242) + EXIT, "helper", "unknown helper 4242"),
    bad("call-helper-zero", call(0) + EXIT, "helper", "unknown helper 0"),
    bad("call-helper-negative", call(0xFFFFFFFF) + EXIT, "helper", "unknown helper -1"),
    bad("call-helper-without-its-map", call("perf_event_read") + EXIT, "map-unknown", "cannot tell", "perf_event_read"),
    bad(
        "call-helper-not-allowed",
        mov(1, 10) + addi(1, -8) + movi(2, 8) + call("get_branch_snapshot") + RETURN,
        "policy",
        "helper get_branch_snapshot (perf) is not granted",
        "get_branch_snapshot",
    ),
    bad(
        "tail-call",
        ldmap(2, 0) + movi(3, 0) + call("tail_call") + RETURN,
        "policy",
        "helper tail_call (tail-call) is not granted",
        "tail_call",
    ),
    bad(
        "tail-call-into-an-unknown-map", ldx(2, 1) + movi(3, 0) + call("tail_call") + RETURN, "map-unknown", "tail_call"
    ),
    bad("nested-bpf-call", movi(1, 5) + call("sys_bpf") + RETURN, "helper", "sys_bpf reaches"),
    bad("call-kfunc-not-allowed", kfunc(IDS["bpf_modify_return_test_tp"]) + EXIT, "attributes", "kfunc"),
    bad("kfunc-id-of-a-variable", kfunc(IDS["jiffies"]) + EXIT, "kfunc", "which is not a function"),
    bad(
        "kfunc-id-of-a-plain-function", kfunc(IDS["commit_creds"]) + EXIT, "kfunc", "commit_creds, which is not a kfunc"
    ),
    bad("kfunc-id-past-end", kfunc(1 << 20) + EXIT, "kfunc", "no BTF type"),
    bad("kfunc-id-negative", kfunc(-5) + EXIT, "kfunc", "no BTF type"),
    bad("module-kfunc", raw(0x85, 0, 2, 1, IDS["vfs_read"]) + EXIT, "kfunc", "kfunc of a module"),
    bad("call-register", raw(0x8D, 1) + EXIT, "call-register", "call by register"),
    bad("goto-register", raw(0x0D, 1) + RETURN, "goto-register", "goto by register"),
    bad("atomic-unknown", atomic(1, 0, 2, 0x30) + RETURN, "atomic", "unknown atomic operation 0x30"),
    bad("atomic-of-a-byte", atomic(1, 0, 2, 0x00, 0x10) + RETURN, "atomic", "unknown atomic operation"),
    bad("may-goto-as-smuggled-jump", raw(0xE5, 0, 1, 1) + RETURN, "opcode", "unknown conditional jump 1"),
    bad("may-goto-with-immediate", raw(0xE5, 0, 0, 1, 9) + RETURN, "reserved", "immediate"),
    bad("may-goto-out", raw(0xE5, off=9) + RETURN, "jump", "jump to 10"),
    bad("gotol-wide", raw(0x06, imm=1 << 20) + RETURN, "jump", "jump to 1048577"),
    bad("gotol-with-offset", raw(0x06, off=1, imm=1) + RETURN, "reserved", "offset"),
    bad("sign-extend-form-on-old-isa", raw(0xBC, 1, 1, 32) + RETURN, "opcode", "unknown width 32"),
    bad("sign-extend-of-immediate", raw(0xB7, 1, 0, 8, 5) + RETURN, "reserved", "offset"),
    bad("address-space-cast", raw(0xBF, 1, 1, 1) + RETURN, "opcode", "unknown width 1"),
    bad("byte-swap-of-24-bits", raw(0xD4, 1, imm=24) + RETURN, "opcode", "byte swap of 24 bits"),
    bad("signed-division-of-kind-2", raw(0x37, 1, 0, 2, 3) + RETURN, "opcode", "division of unknown kind 2"),
    bad("subprog-overlap", callsub(1) + EXIT + movi(0, 1) + callsub(-2) + EXIT, "recursion", "calls itself"),
    bad("subprog-recursion", callsub(1) + EXIT + callsub(-1) + EXIT, "recursion", "calls itself"),
    bad("subprog-mutual-recursion", callsub(1) + EXIT + callsub(1) + EXIT + callsub(-3) + EXIT, "recursion", "itself"),
    Case(
        "257-subprograms",
        lambda: simple(b"".join(callsub(257 + i) for i in range(256)) + RETURN + RETURN * 256),
        "call",
        "257 subprograms are over the limit",
    ),
    bad("call-into-ldimm64", callsub(1) + ld64(1, 0) + RETURN, "call", "second half"),
    bad("call-outside", callsub(9) + EXIT, "call", "outside the program"),
    bad(
        "callback-not-a-subprog",
        movi(1, 4) + movi(2, 4) + movi(3, 0) + movi(4, 0) + call("loop") + RETURN,
        "callback",
        "cannot tell which subprogram loop calls back",
        "loop",
    ),
    bad("callback-outside", ldfunc(2, 99) + RETURN, "call", "outside the program"),
    bad(
        "map-from-a-number",
        ld64(1, 0xFFFF888000000000) + mov(2, 10) + addi(2, -8) + call("map_lookup_elem") + RETURN,
        "map-unknown",
        "cannot tell which map map_lookup_elem gets",
        "map_lookup_elem",
    ),
    bad(
        "map-through-memory",
        ldmap(6, 0)
        + lookup()
        + jeqi(0, 0, 5)
        + stx(0, 0, 6)
        + ldx(1, 0)
        + mov(2, 10)
        + addi(2, -8)
        + call("map_delete_elem")
        + RETURN,
        "map-unknown",
        "cannot tell which map map_delete_elem gets",
        "map_lookup_elem",
        "map_delete_elem",
    ),
    bad(
        "map-plus-offset",
        ldmap(1, 0) + ldx(3, 10, -16) + add(1, 3) + mov(2, 10) + call("map_delete_elem") + RETURN,
        "map-unknown",
        "cannot tell",
        "map_delete_elem",
    ),
    Case("1000001-insns", lambda: simple(movi(0, 0) * 1_000_000 + EXIT), "size", "1000001 instructions"),
    Case("too-many-insns-for-policy", lambda: simple(movi(0, 0) * 100_000 + EXIT), "policy", "100000 allowed"),
    Case("zero-insns", lambda: simple(b""), "length", "no instructions"),
    Case("cut-instruction", lambda: simple(RETURN[:-3]), "length", "not whole instructions"),
    Case("guard-missing", lambda: guarded(COUNT), "policy-enforceable", "target kprobe:vfs_read is not enforceable"),
    Case(
        "guard-jumped-over",
        lambda: guarded(mov(6, 1) + jnei(6, 0, 4) + guard(10) + _BODY + RETURN),
        "policy-enforceable",
        "not enforceable",
    ),
    Case(
        "guard-after-the-effect",
        lambda: guarded(mov(6, 1) + _BODY + mov(1, 6) + guard(0) + RETURN),
        "policy-enforceable",
        "not enforceable",
    ),
    Case(
        "guard-on-another-context",
        lambda: guarded(movi(1, 0) + guard(10) + _BODY + RETURN),
        "policy-enforceable",
        "not enforceable",
    ),
    Case(
        "guard-turned-round",
        lambda: guarded(call("get_func_ip") + ld64(1, VFS_READ) + raw(0x1D, 0, 1, 10) + _BODY + RETURN),
        "policy-enforceable",
        "not enforceable",
    ),
    Case(
        "guard-of-low-half",
        lambda: guarded(call("get_func_ip") + ld64(1, VFS_READ) + raw(0x5E, 0, 1, 10) + _BODY + RETURN),
        "policy-enforceable",
        "not enforceable",
    ),
    Case(
        "guard-for-another-function",
        lambda: guarded(guard(10) + _BODY + RETURN, OTHER_KPROBE),
        "guard",
        "which is no function that it names",
    ),
    Case(
        "stack-write-through-helper-hides-nothing",
        lambda: bundle(
            program(
                lookup() + jeqi(0, 0, 4) + mov(1, 0) + movi(2, 8) + movi(3, 0) + call("probe_read_user") + RETURN,
                declare(b"\0" * 104, "map_lookup_elem", "probe_read_user", maps=((0, ("read",)),)),
            )
        ),
        "attributes",
        "does write on map 0",
    ),
    Case(
        "write-through-a-spilled-pointer",
        lambda: bundle(
            program(
                lookup() + jeqi(0, 0, 3) + stx(10, -16, 0) + ldx(3, 10, -16) + st(3, 0, 1) + RETURN,
                declare(b"\0" * 96, "map_lookup_elem", maps=((0, ("read",)),)),
            )
        ),
        "attributes",
        "does write on map 0",
    ),
    Case(
        "write-in-a-callback",
        lambda: bundle(
            program(
                ldmap(1, 0)
                + ldfunc(2, 6)
                + movi(3, 0)
                + movi(4, 0)
                + call("for_each_map_elem")
                + RETURN
                + st(3, 0, 1)
                + RETURN,
                declare(b"\0" * 104, "for_each_map_elem", subprograms=1, maps=((0, ("iterate",)),)),
            )
        ),
        "attributes",
        "does write on map 0",
    ),
]
