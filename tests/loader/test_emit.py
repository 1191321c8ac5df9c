"""Bytes of emitted loaders: golden files, and the shape that the defence of ABI 1 hangs on.

`UPDATE_GOLDEN=1 pytest tests/loader/test_emit.py` writes the files anew; read the difference before committing it.
"""

from __future__ import annotations

import errno
import os
import random
import struct
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from bpfseal.errors import BpfsealError
from bpfseal.signer import loader_blob as blob
from bpfseal.signer.asm import Asm, R
from bpfseal.signer.bundle import Bundle
from bpfseal.signer.loader import Code, ExclField, Loader, Terms, emit
from bpfseal.signer.loader_context import LoadResult, Stage, make_context, parse_context
from tests.loader import samples

GOLDEN = Path(__file__).parent / "golden"
TERMS = {
    "abi0": Terms(abi=0),
    "abi1": Terms(abi=1, uid=1000, tgid=4242, deadline_ns=1 << 40, excl=ExclField(32, 4), record=77),
    "abi2": Terms(abi=2, uid=1000, tgid=4242, deadline_ns=1 << 40, record=77),
}


def insns(code: bytes) -> list[tuple[int, int, int, int, int]]:
    """(opcode, dst, src, off, imm) of every slot."""
    return [(op, regs & 15, regs >> 4, off, imm) for op, regs, off, imm in struct.iter_unpack("<BBhi", code)]


def dump(loader: Loader) -> str:
    code = "".join(f"{loader.insns[i : i + 8].hex()}\n" for i in range(0, len(loader.insns), 8))
    data = "".join(f"{loader.metadata[i : i + 32].hex(' ', 8)}\n" for i in range(0, len(loader.metadata), 32))
    return f"# instructions\n{code}# metadata\n{data}# context {loader.ctx_size}\n"


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("sample", ["tiny", "small", "linked"])
def test_golden(name: str, sample: str) -> None:
    linked = (("btf_trace_sys_enter", 23), ("vfs_read", 24))
    made = samples.linked(*linked, id_of=len, cookie=7) if sample == "linked" else getattr(samples, sample)()
    got = dump(emit(made, TERMS[name]))
    path = GOLDEN / f"{sample}-{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(got)
    assert got == path.read_text()


@pytest.mark.parametrize("name", TERMS)
def test_the_map_is_referenced_exactly_once(name: str) -> None:
    code = insns(emit(samples.small(), TERMS[name]).insns)
    loads = []
    at = 0
    while at < len(code):
        if code[at][0] == 0x18:
            loads.append(code[at])
            at += 1
        at += 1
    assert [(i[1], i[4]) for i in loads if i[2] == 5] == [(6, 0)]
    assert {i[2] for i in loads} <= {0, 5}


def test_v1_checks_before_it_looks_up() -> None:
    """Nothing is called before the map was found exclusive and its hash right."""
    code = insns(emit(samples.small(), TERMS["abi1"]).insns)
    first_call = next(i for i, insn in enumerate(code) if insn[0] == 0x85)
    reads = [(insn[0], insn[3]) for insn in code[:first_call] if insn[0] & 0xE7 == 0x61 and insn[2] == 6]
    assert reads == [(0x61, 32), (0x79, 0), (0x79, 8), (0x79, 16), (0x79, 24)]


def test_context_is_read_for_the_log_only() -> None:
    """Every load through the context pointer is of the three log members."""
    code = insns(emit(samples.small(), TERMS["abi2"]).insns)
    context: set[int] = {1}
    for opcode, dst, src, off, _ in code:
        if opcode == 0x79 and src == 10 and off == -8:
            context.add(dst)
        elif opcode & 0x07 == 0x01 and src in context and src != 10:
            assert off in (0, 8, 12), (opcode, dst, src, off)
            context.discard(dst)
        elif opcode == 0x85:
            context -= {0, 1, 2, 3, 4, 5}
        elif opcode & 0x07 in (0x00, 0x01, 0x04, 0x07):
            context.discard(dst)


def test_one_changed_byte_of_metadata_changes_the_v1_loader_only() -> None:
    terms, sample = TERMS["abi1"], samples.small()
    other = replace_initial(sample)
    assert emit(sample, terms).insns != emit(other, terms).insns
    assert emit(sample, TERMS["abi2"]).insns == emit(other, TERMS["abi2"]).insns
    assert emit(sample, TERMS["abi2"]).signed_bytes(2) != emit(other, TERMS["abi2"]).signed_bytes(2)
    assert emit(sample, terms).signed_bytes(1) == emit(sample, terms).insns


def replace_initial(sample: Bundle) -> Bundle:
    return samples.bundle(sample.programs, (samples.counter_map(start=41), *sample.maps[1:]))


def test_record_number_and_magic_are_in_the_metadata() -> None:
    metadata = emit(samples.tiny(), TERMS["abi2"]).metadata
    assert metadata[: len(blob.MAGIC)] == blob.MAGIC
    assert struct.unpack_from("<Q", metadata, blob.H_RECORD) == (77,)


def test_size_of_a_thousand() -> None:
    """The code does not grow with the bundle but for one pair of instructions per two descriptors."""
    loader = emit(samples.many(1000, 1000), TERMS["abi1"])
    assert len(loader.insns) - len(emit(samples.many(2, 2), TERMS["abi1"]).insns) == 16 * 998
    assert len(loader.insns) < 20_000


def one_map(**members: object) -> Bundle:
    """A bundle with one array map, some of its members changed."""
    return samples.bundle((), (msgspec.structs.replace(samples.counter_map(), **members),))


@pytest.mark.parametrize(
    ("bundle", "abi", "message"),
    [
        (samples.tiny(), 1, "exclusive"),
        (samples.many(4001, 4000), 0, "a loader can make 8000"),
        (samples.bundle((samples.program("p", b"1234567"),), ()), 0, "no instructions"),
        (samples.bundle((samples.program("p", b""),), ()), 0, "no instructions"),
        (one_map(max_entries=1 << 32), 0, "does not fit"),
        (one_map(initial=b"1"), 0, "1 bytes of initial contents for 8"),
    ],
)
def test_refused(bundle: Bundle, abi: int, message: str) -> None:
    with pytest.raises(BpfsealError, match=message):
        emit(bundle, Terms(abi=abi))


def test_parse_context() -> None:
    size = emit(samples.small(), TERMS["abi0"]).ctx_size
    good = struct.pack("<QIIIIixxxx4i", 0, 0, 0, Stage.DONE, 0, 0, 10, 11, 12, 13)
    assert len(good) == size == len(make_context(size))
    assert parse_context(good, 3, 1) == LoadResult((10, 11, 12), (13,), Stage.DONE, 0, 0)
    bad = struct.pack("<QIIIIixxxx4i", 0, 0, 0, Stage.PROGRAM, 3, -errno.EACCES, 10, 11, 12, 13)
    assert parse_context(bad, 3, 1) == LoadResult((), (), Stage.PROGRAM, 3, errno.EACCES)
    for nonsense in (good[:-1], good[:16] + b"\x09" + good[17:], good[:24] + b"\x01" + good[25:]):
        with pytest.raises(BpfsealError):
            parse_context(nonsense, 3, 1)


def test_terms_leave_out_what_is_not_asked() -> None:
    full = emit(samples.tiny(), TERMS["abi2"])
    for change in ({"uid": None}, {"tgid": None}, {"deadline_ns": 0}):
        assert len(emit(samples.tiny(), replace(TERMS["abi2"], **change)).insns) < len(full.insns)


def test_assembler_limits() -> None:
    far = Asm()
    far.jump("end")
    for _ in range(0x8000):
        far.mov(R.R0, 0)
    far.label("end")
    with pytest.raises(ValueError, match="16 bits"):
        far.code()
    lost = Asm()
    lost.jump("nowhere")
    with pytest.raises(ValueError, match="no label"):
        lost.code()
    with pytest.raises(ValueError, match="32 bits"):
        Asm().mov(R.R0, 1 << 32)


@pytest.mark.parametrize("abi", [0, 1, 2])
def test_code_from_a_template_is_the_code(abi: int) -> None:
    """What is put into a kept template is what would be emitted anew, for any terms."""
    chance = random.Random(abi)
    for _ in range(60):
        sample = chance.choice((samples.tiny(), samples.small(), samples.many(chance.randrange(1, 5), 3)))
        terms = Terms(
            abi=abi,
            uid=chance.choice((None, 0, 1000, (1 << 32) - 2)),
            tgid=chance.choice((None, 1, chance.randrange(1 << 22))),
            deadline_ns=chance.choice((0, 1, chance.getrandbits(63))),
            excl=chance.choice((ExclField(32, 4), ExclField(280, 8))),
            record=chance.getrandbits(40),
        )
        metadata, layout = blob.build(sample, terms.record)
        assert emit(sample, terms).insns == Code(layout, terms, metadata).bytes()
    with pytest.raises(ValueError, match="does not fit"):
        emit(samples.tiny(), Terms(abi=abi, uid=1 << 32, excl=ExclField(32, 4)))
