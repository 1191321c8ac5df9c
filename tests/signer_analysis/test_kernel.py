"""The analysis against the kernel: same instruction set, same helpers, same maps, nothing written unseen."""

from __future__ import annotations

import ctypes
import os
import random
import re
import struct
from collections.abc import Iterator

import pytest

from bpfseal.signer import bpf, helpers
from bpfseal.signer.analyse import analyse
from bpfseal.signer.cfg import split
from bpfseal.signer.insn import LD_IMM64, decode
from bpfseal.signer.kernel_ids import Kernel
from bpfseal.signer.refusal import Refusal
from tests.signer_analysis.generate import MAPS, generate
from tests.signer_analysis.kit import EXIT, RETURN, BtfWriter, mov, movi, raw, st

SOCKET_FILTER, RAW_TRACEPOINT = helpers.SOCKET_FILTER, helpers.RAW_TRACEPOINT


def _may_load() -> bool:
    try:
        os.close(bpf.prog_load(RAW_TRACEPOINT, RETURN))
    except OSError:
        return False
    return True


pytestmark = [pytest.mark.host, pytest.mark.skipif(not _may_load(), reason="needs root and bpf(2)")]


def load(insns: bytes, type: int, fds: tuple[int, ...] = (), btf: int = 0, info: bytes = b"") -> tuple[int, str]:
    """(fd or -1, verifier log)"""
    log = ctypes.create_string_buffer(1 << 18)
    try:
        fd = bpf.prog_load(type, insns, fds=fds, log=log, log_level=1, btf_fd=btf, func_info=info)
    except OSError:
        fd = -1
    return fd, log.value.decode(errors="replace")


def accepts(insns: bytes) -> str:
    """Empty if the decoder and the flow graph take it, else why not."""
    try:
        split(decode(insns))
    except Refusal as error:
        return error.rule
    return ""


# What the kernel says about encodings, as opposed to what a program does with registers and memory.
ENCODING = re.compile(
    r"unknown opcode|reserved field|unknown insn class|BPF_\w+ uses|invalid BPF_LD_IMM|bad BPF_LD_IMM64"
    r"|unrecognized bpf_ld_imm64|R1[1-5] is invalid|frame pointer is read only|invalid atomic"
)


def test_every_opcode_means_the_same() -> None:
    """All opcodes with registers, offsets and immediates that matter: whatever the kernel loads is decoded, and
    whatever it calls a wrong encoding is refused."""
    before = mov(6, 1) + movi(0, 0) + st(10, -16, 0) + st(10, -8, 0) + mov(2, 10) + raw(0x07, 2, imm=-16)
    loaded = wrong = 0
    for code in range(256):
        for dst, src in ((0, 0), (1, 0), (2, 1), (1, 2), (3, 0), (1, 11), (10, 1)):
            for off in (0, 1, 8):
                for imm in (0, 1, 16, 0xE1, 0x100):
                    insns = before + raw(code, dst, src, off, imm)
                    insns += (raw(0) if code == LD_IMM64 else b"") + movi(0, 0) * 10 + EXIT
                    ours = accepts(insns)
                    fd, log = load(insns, SOCKET_FILTER)
                    where = f"{code:#04x} r{dst} r{src} off {off} imm {imm:#x}: {ours or 'taken'}: {log[-200:]}"
                    if fd >= 0:
                        os.close(fd)
                        loaded += 1
                        # Jumps over the rest make it unreachable, which only this project refuses.
                        assert ours in ("", "unreachable"), where
                    elif ENCODING.search(log):
                        wrong += 1
                        assert ours, where
    assert loaded > 1000
    assert wrong > 2000


@pytest.fixture(scope="module")
def fds() -> Iterator[tuple[int, ...]]:
    made = tuple(bpf.map_create(m.type, m.key_size, m.value_size, m.max_entries) for m in MAPS)
    yield made
    for fd in made:
        os.close(fd)


@pytest.fixture(scope="module")
def btf() -> Iterator[int]:
    """Type 3 is the main function, type 6 any static one: callbacks must have types."""
    writer = BtfWriter()
    assert (writer.func("main", 1), writer.func("static", 0)) == (3, 6)
    data = ctypes.create_string_buffer(writer.bytes())
    fd = bpf.bpf(18, struct.pack("<QQIII", ctypes.addressof(data), 0, len(data) - 1, 0, 0))
    yield fd
    os.close(fd)


def map_ids(prog: int) -> set[int]:
    """Ids of the maps that a loaded program holds (`nr_map_ids` and `map_ids` of struct bpf_prog_info)."""
    ids = (ctypes.c_uint32 * 64)()
    info = ctypes.create_string_buffer(struct.pack("<52xIQ", 64, ctypes.addressof(ids)), 64)
    bpf.bpf(bpf.OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", prog, len(info), ctypes.addressof(info)))
    return set(ids[: struct.unpack_from("<I", info, 52)[0]])


def map_id(fd: int) -> int:
    info = ctypes.create_string_buffer(8)
    bpf.bpf(bpf.OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", fd, len(info), ctypes.addressof(info)))
    return int(struct.unpack_from("<I", info, 4)[0])


def contents(fd: int, key_size: int) -> list[bytes | None]:
    found: list[bytes | None] = []
    for key in range(4):
        value = ctypes.create_string_buffer(64 * 64)
        wanted = ctypes.create_string_buffer(key.to_bytes(key_size, "little"), key_size)
        attr = struct.pack("<IxxxxQQQ", fd, ctypes.addressof(wanted), ctypes.addressof(value), 0)
        try:
            bpf.bpf(1, attr)
            found.append(value.raw)
        except OSError:
            found.append(None)
    return found


def compare(seed: int, fds: tuple[int, ...], btf: int) -> None:
    made = generate(random.Random(seed))
    insns = made.insns()
    facts = analyse(decode(insns), MAPS, Kernel())
    assert set(facts.found.helpers) == made.helpers, f"seed {seed}"
    assert facts.found.maps == made.maps(), f"seed {seed}"
    assert facts.found.subprograms == len(made.subprograms)
    info = b"".join(struct.pack("<II", start, 6 if start else 3) for start in facts.starts)
    fd, log = load(insns, RAW_TRACEPOINT, fds, btf, info)
    assert fd >= 0, f"seed {seed}: {log[-600:]}"
    try:
        assert map_ids(fd) == {map_id(fds[index]) for index, _ in facts.found.maps}, f"seed {seed}"
        called = set(re.findall(r"call bpf_(\w+)#\d+", log))
        # The verifier walks only what can be executed, so it may miss a call, but never has another.
        assert called <= set(facts.found.helpers), f"seed {seed}"
        before = [contents(f, m.key_size) if m.key_size else [] for f, m in zip(fds, MAPS, strict=True)]
        bpf.prog_run(fd, bytes(16))
        operations = dict(facts.found.maps)
        for index, (f, m) in enumerate(zip(fds, MAPS, strict=True)):
            if m.key_size and contents(f, m.key_size) != before[index]:
                assert {"write", "delete"} & set(operations.get(index, ())), f"seed {seed}: map {index} changed unseen"
    finally:
        os.close(fd)


def test_random_programs(fds: tuple[int, ...], btf: int) -> None:
    for seed in range(400):
        compare(seed, fds, btf)


@pytest.mark.slow
def test_many_random_programs(fds: tuple[int, ...], btf: int) -> None:
    for seed in range(400, 100_400):
        compare(seed, fds, btf)
