"""Attacks on the load sequence, as functions that say what happened. Used on the running kernel (no signatures, but
the loader's own checks work there) and in test kernels that verify.

Naive loaders are built here, next to what breaks them: every attack must succeed against its naive form, or it proves
nothing about the hard one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import mmap
import os
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from bpfseal.runtime import bpf, bpf_info
from bpfseal.signer import loader_blob as blob
from bpfseal.signer.asm import PSEUDO_MAP_IDX, PSEUDO_MAP_VALUE, Asm, R
from bpfseal.signer.bpf import PROG_LOAD
from bpfseal.signer.bundle import Bundle
from bpfseal.signer.loader import H_MAP_LOOKUP, Code, Loader, Terms, emit
from bpfseal.signer.loader_context import (
    BPF_F_SLEEPABLE,
    PROG_TYPE_SYSCALL,
    LoadResult,
    Stage,
    context_size,
    make_context,
    parse_context,
)
from bpfseal.signer.syscall import address_of
from tests.loader import samples

KEY = bytes(4)
Sign = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Kernel:
    """What the attacks need to know: signing ABI, where exclusivity is, how to sign and for which ring.

    `sign` None: a kernel that does not verify; loaders are loaded as they are, under the rules of `terms.abi`.
    """

    terms: Terms
    sign: Sign | None = None
    keyring: int = 0

    @property
    def abi(self) -> int:
        return self.terms.abi

    def signature(self, loader: Loader) -> bytes:
        return self.sign(loader.signed_bytes(self.abi)) if self.sign else b""


# Loaders that trust too much


class _NoExclusivity(Code):
    """Checks the hash of the map, but not that nobody else can write to it."""

    def _check_map(self) -> None:
        a = self.asm
        for at in range(0, 32, 8):
            a.ldx(8, R.R1, R.R6, at)
            a.ld_imm64(R.R2, int.from_bytes(self.sha[at : at + 8], "little"))
            a.jump_if(R.R1, "!=", R.R2, "bad_metadata")


class _TwoReferences(Code):
    """Refers to the map once to check its hash and again for the look-up: the kernel reads fd_array twice."""

    def _enter(self) -> None:
        a = self.asm
        a.stx(8, R.R10, -8, R.R1)
        if self.terms.abi == 1:
            a.ld_pseudo(R.R6, PSEUDO_MAP_IDX, 0)
            for at in range(0, 32, 8):
                a.ldx(8, R.R1, R.R6, at)
                a.ld_imm64(R.R2, int.from_bytes(self.sha[at : at + 8], "little"))
                a.jump_if(R.R1, "!=", R.R2, "bad_metadata")
        a.st(4, R.R10, -12, 0)
        a.mov(R.R2, R.R10)
        a.add(R.R2, -12)
        a.ld_pseudo(R.R1, PSEUDO_MAP_IDX, 0)
        a.call(H_MAP_LOOKUP)
        a.jump_if(R.R0, "!=", 0, "value")
        a.label("bad_metadata")
        a.ret(-errno.EINVAL)
        a.label("value")
        a.mov(R.R7, R.R0)


class _NoTerms(Code):
    """Runs for anybody, at any time, as often as one likes."""

    def _check_terms(self) -> None:
        pass

    def _once(self) -> None:
        self.asm.stx(8, R.R7, blob.H_BASE, R.R7)
        self.asm.ldx(8, R.R6, R.R7, blob.H_BASE)

    def _relocate(self, *members: int) -> None:
        """Leaves alone what an earlier run has made an address."""
        a = self.asm
        for member in members:
            a.ldx(8, R.R1, R.R8, member)
            a.jump_if(R.R1, ">=", R.R6, f"relocated{len(a)}")
            a.add(R.R1, R.R6)
            a.stx(8, R.R8, member, R.R1)
            a.label(f"relocated{len(a) - 3}")


def _emit_as(kind: type[Code]) -> Callable[[Bundle, Terms], Loader]:
    def make(bundle: Bundle, terms: Terms) -> Loader:
        metadata, layout = blob.build(bundle, terms.record)
        return Loader(kind(layout, terms, metadata).bytes(), metadata, context_size(layout.objects))

    return make


Emit = Callable[[Bundle, Terms], Loader]
without_exclusivity: Emit = _emit_as(_NoExclusivity)
with_two_references: Emit = _emit_as(_TwoReferences)
without_terms: Emit = _emit_as(_NoTerms)


# Pieces of the load sequence


@contextlib.contextmanager
def metadata_map(
    contents: bytes, owner: bytes, *, exclusive: bool = True, freeze: bool = True, ask_hash: bool = True
) -> Iterator[int]:
    """A metadata map for the program `owner`."""
    excl = hashlib.sha256(owner).digest() if exclusive else b""
    fd = bpf.map_create(bpf.MAP_ARRAY, 4, len(contents), 1, name=b"attacked", excl_prog_hash=excl)
    try:
        bpf.map_update(fd, KEY, contents)
        if freeze:
            bpf.map_freeze(fd)
            if ask_hash:
                bpf.map_hash(fd)
        yield fd
    finally:
        os.close(fd)


def load_loader(kernel: Kernel, insns: bytes, meta: int, signature: bytes) -> int:
    """The fd of a loaded loader; OSError when the kernel says no."""
    return bpf.prog_load(
        PROG_TYPE_SYSCALL,
        insns,
        flags=BPF_F_SLEEPABLE,
        fds=(meta,),
        bind_fds=kernel.abi == 2,
        signature=signature,
        keyring=kernel.keyring,
    )


def run(program: int, bundle: Bundle, size: int) -> tuple[int, LoadResult]:
    returned, context = bpf.prog_run(program, make_context(size))
    return returned, parse_context(context, len(bundle.maps), len(bundle.programs))


def close_all(result: LoadResult) -> None:
    for fd in (*result.map_fds, *result.prog_fds):
        os.close(fd)


def outcome(kernel: Kernel, insns: bytes, metadata: bytes, signature: bytes, bundle: Bundle, size: int) -> str:
    """What becomes of these bytes: "load E…", "run E…", or the tag of the program that got loaded."""
    with metadata_map(metadata, insns, ask_hash=kernel.abi == 1) as meta:
        try:
            program = load_loader(kernel, insns, meta, signature)
        except OSError as error:
            return f"load {errno.errorcode[error.errno or 0]}"
        try:
            returned, result = run(program, bundle, size)
        except OSError as error:
            return f"run {errno.errorcode[error.errno or 0]}"
        finally:
            os.close(program)
    if returned:
        return f"run {errno.errorcode.get(-returned, returned)}"
    tag = bpf_info.prog_info(result.prog_fds[0]).tag
    close_all(result)
    return tag


# Bundles told apart by the name of their program


def good() -> Bundle:
    return samples.bundle((samples.program("good", samples.counting()),), (samples.counter_map(),))


def evil() -> Bundle:
    """As long as `good` in every part, so that its metadata fits the same loader."""
    return samples.bundle((samples.program("evil", samples.counting()),), (samples.counter_map(),))


def loaded_name(result: LoadResult) -> str:
    name = bpf_info.prog_info(result.prog_fds[0]).name
    close_all(result)
    return name


# The attacks


def rewrite_a_shared_map(kernel: Kernel, make: Emit) -> str:
    """Right contents in a map that is *not* exclusive, frozen and hashed; then another BPF program changes them.

    "evil": that program was loaded under the good signature. "run E…" or "load E…": refused.
    """
    loader, other = make(good(), kernel.terms), make(evil(), kernel.terms)
    with metadata_map(loader.metadata, loader.insns, exclusive=False, ask_hash=kernel.abi == 1) as meta:
        try:
            program = load_loader(kernel, loader.insns, meta, kernel.signature(loader))
        except OSError as error:
            return f"load {errno.errorcode[error.errno or 0]}"
        try:
            poke(meta, loader.metadata, other.metadata)
            returned, result = run(program, good(), loader.ctx_size)
        finally:
            os.close(program)
    return loaded_name(result) if returned == 0 else f"run {errno.errorcode[-returned]}"


def poke(meta: int, old: bytes, new: bytes) -> None:
    """Changes a frozen map's value from `old` to `new` with a program of its own. OSError if it is not allowed to."""
    a = Asm()
    a.ld_pseudo(R.R1, PSEUDO_MAP_VALUE, meta, 0)
    for at, (was, wanted) in enumerate(zip(old, new, strict=True)):
        if was != wanted:
            a.st(1, R.R1, at, wanted)
    a.ret(0)
    with bpf.Fd(bpf.prog_load(PROG_TYPE_SYSCALL, a.code(), flags=BPF_F_SLEEPABLE)) as program:
        bpf.prog_run(program.number, bytes(8))


def write_to_an_exclusive_map(kernel: Kernel) -> str:
    """errno name with which another program is kept out of the metadata map, or "written"."""
    loader = emit(good(), kernel.terms)
    with metadata_map(loader.metadata, loader.insns, ask_hash=kernel.abi == 1) as meta:
        try:
            poke(meta, loader.metadata, emit(evil(), kernel.terms).metadata)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
    return "written"


def hash_before_freeze() -> str:
    with metadata_map(b"12345678", b"", exclusive=False, freeze=False) as fd:
        try:
            bpf.map_hash(fd)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
    return "hashed"


def swap_the_slot(
    kernel: Kernel, make: Emit, *, trials: int, seconds: float, enough: int = 0, dwell: int = 100
) -> Counter[str]:
    """Somebody keeps swapping the descriptor in fd_array between an honest and a foreign metadata map while
    the loader is loaded. How often what was loaded: "good", "evil", "refused".

    `dwell`: empty rounds of the interpreter between two swaps. Stops after `trials`, after `seconds`, or once "evil"
    was seen `enough` times.
    """
    loader, other = make(good(), kernel.terms), make(evil(), kernel.terms)
    signature = kernel.signature(loader)
    counts: Counter[str] = Counter()
    end = time.monotonic() + seconds
    with _swapping(dwell) as (slot, pair):
        while counts.total() < trials and time.monotonic() < end and not (enough and counts["evil"] >= enough):
            with (
                metadata_map(loader.metadata, loader.insns, ask_hash=kernel.abi == 1) as honest,
                metadata_map(other.metadata, loader.insns, ask_hash=kernel.abi == 1) as foreign,
            ):
                os.dup2(honest, pair[0])
                os.dup2(foreign, pair[1])
                counts[_one_race(kernel, loader, signature, slot)] += 1
    return counts


@contextlib.contextmanager
def _swapping(dwell: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Address of a slot that another process keeps swapping between two descriptor numbers, and those numbers. The
    slot is all that is shared; a process swaps faster than a thread that has to wait for the interpreter's lock."""
    memory = mmap.mmap(-1, 4096)
    slots = memoryview(memory).cast("i")
    pair = os.dup(0), os.dup(0)
    child = os.fork()
    if child == 0:
        first, second = pair
        pause = range(dwell)
        while True:
            slots[0] = first
            for _ in pause:
                pass
            slots[0] = second
            for _ in pause:
                pass
    try:
        yield ctypes.addressof(ctypes.c_char.from_buffer(memory)), pair
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for fd in pair:
            os.close(fd)


def _one_race(kernel: Kernel, loader: Loader, signature: bytes, slot: int) -> str:
    licence = b"GPL\0"
    attr = struct.pack(
        "<IIQQIIQII16s56xQ20xI",
        PROG_TYPE_SYSCALL,
        len(loader.insns) // 8,
        address_of(loader.insns),
        address_of(licence),
        0,
        0,
        0,
        0,
        BPF_F_SLEEPABLE,
        b"raced",
        slot,
        1 if kernel.abi == 2 else 0,
    )
    if signature:
        attr += struct.pack("<QIi", address_of(signature), len(signature), kernel.keyring)
    try:
        program = bpf.bpf(PROG_LOAD, attr)
    except OSError:
        return "refused"
    try:
        returned, result = run(program, good(), loader.ctx_size)
    finally:
        os.close(program)
    return loaded_name(result) if returned == 0 else "refused"


def flip(data: bytes, bit: int) -> bytes:
    out = bytearray(data)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


@dataclass(frozen=True)
class Flips:
    """Outcomes by part. `changed`: signature flips after which something else than the sealed program was loaded."""

    loader: Counter[str]
    metadata: Counter[str]
    signature: Counter[str]
    accepted: list[int]
    changed: list[int]


def flip_bits(kernel: Kernel, step: int) -> Flips:
    """Every `step`-th bit of loader, metadata and signature of one sealed bundle, singly. An odd step comes by all
    positions in a byte."""
    bundle = samples.tiny()
    loader = emit(bundle, kernel.terms)
    signature = kernel.signature(loader)
    args = (bundle, loader.ctx_size)
    sealed = outcome(kernel, loader.insns, loader.metadata, signature, *args)
    assert len(sealed) == 16, sealed
    parts: tuple[Counter[str], Counter[str], Counter[str]] = (Counter(), Counter(), Counter())
    for bit in range(0, 8 * len(loader.insns), step):
        parts[0][outcome(kernel, flip(loader.insns, bit), loader.metadata, signature, *args)] += 1
    for bit in range(0, 8 * len(loader.metadata), step):
        parts[1][outcome(kernel, loader.insns, flip(loader.metadata, bit), signature, *args)] += 1
    accepted, changed = [], []
    for bit in range(0, 8 * len(signature), step):
        result = outcome(kernel, loader.insns, loader.metadata, flip(signature, bit), *args)
        parts[2][result] += 1
        if len(result) == 16:
            accepted.append(bit)
            if result != sealed:
                changed.append(bit)
    return Flips(*parts, accepted, changed)


def random_contexts(kernel: Kernel, trials: int) -> Counter[str]:
    """Loads with random contexts. Keys: "refused", or what was loaded (program tag and map properties)."""
    bundle = samples.small()
    counts: Counter[str] = Counter()
    loader = emit(bundle, kernel.terms)
    signature = kernel.signature(loader)
    for trial in range(trials):
        context = bytearray(os.urandom(loader.ctx_size))
        if trial % 2:  # a valid "no log": else nearly every context is refused
            context[:16] = bytes(16)
        with (
            metadata_map(loader.metadata, loader.insns, ask_hash=kernel.abi == 1) as meta,
            bpf.Fd(load_loader(kernel, loader.insns, meta, signature)) as program,
        ):
            returned, out = bpf.prog_run(program.number, bytes(context))
        result = parse_context(out, 3, 1)
        if result.stage != Stage.DONE:
            counts["refused" if returned < 0 else f"returned {returned} at {result.stage.name}"] += 1
            continue
        info = [bpf_info.map_info(fd) for fd in result.map_fds]
        shape = (
            bpf_info.prog_info(result.prog_fds[0]).tag,
            [(m.type, m.key_size, m.value_size, m.max_entries, m.flags) for m in info],
            [bpf.map_lookup(result.map_fds[i], KEY, 8) for i in (0, 2)],
        )
        counts[repr(shape)] += 1
        close_all(result)
    return counts


def with_terms(kernel: Kernel, **changes: object) -> Kernel:
    return Kernel(msgspec.structs.replace(kernel.terms, **changes), kernel.sign, kernel.keyring)


def run_once_more(kernel: Kernel, make: Emit, meanwhile: Callable[[], object]) -> tuple[str, str]:
    """A loader is loaded and run, `meanwhile` happens, the held descriptor is run again: both outcomes."""
    loader = make(good(), kernel.terms)
    with (
        metadata_map(loader.metadata, loader.insns, ask_hash=kernel.abi == 1) as meta,
        bpf.Fd(load_loader(kernel, loader.insns, meta, kernel.signature(loader))) as program,
    ):
        first = _run_name(program.number, loader)
        meanwhile()
        return first, _run_name(program.number, loader)


def _run_name(program: int, loader: Loader) -> str:
    returned, result = run(program, good(), loader.ctx_size)
    return loaded_name(result) if returned == 0 else errno.errorcode[-returned]


def run_elsewhere(kernel: Kernel, make: Emit, change: Callable[[], object]) -> str:
    """The loader is loaded here and run by a child process after `change` was called in it."""
    loader = make(good(), kernel.terms)
    with (
        metadata_map(loader.metadata, loader.insns, ask_hash=kernel.abi == 1) as meta,
        bpf.Fd(load_loader(kernel, loader.insns, meta, kernel.signature(loader))) as program,
    ):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                change()
                returned, _ = run(program.number, good(), loader.ctx_size)
                os.write(write, struct.pack("<i", returned))
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(child, 0)
    (returned,) = struct.unpack("<i", answer)
    return "ran" if returned == 0 else errno.errorcode[-returned]
