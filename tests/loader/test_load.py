"""The load sequence on the running kernel, unsigned: what it makes, what it says when it cannot, what it leaves."""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import resource
import struct
import time
from typing import Any

import msgspec
import pytest

from bpfseal.runtime import bpf, bpf_info
from bpfseal.runtime.bpf_link import raw_tracepoint_open
from bpfseal.runtime.load import LoadRefused, VerifierRejected, load, seal_locally
from bpfseal.runtime.ring import RingReader
from bpfseal.signer.bundle import MapSpec
from bpfseal.signer.loader import Loader, Terms, emit
from bpfseal.signer.loader_context import LoadResult, Stage, make_context, parse_context
from tests.loader import samples
from tests.loader.conftest import open_fds

pytestmark = pytest.mark.host
KEY = bytes(4)


def counter(fd: int) -> int:
    value = bpf.map_lookup(fd, KEY, 8)
    assert value is not None
    return int.from_bytes(value, "little")


def test_runs_counts_and_tells(suffix: str) -> None:
    bundle = samples.named(samples.small(), suffix)
    with load(bundle, seal_locally(bundle)) as loaded:
        count, ring, constant = loaded.map_fds
        assert counter(count) == 40
        with RingReader(ring, 4096) as reader:
            for _ in range(5):
                assert bpf.prog_run(loaded.prog_fds[0], bytes(16))[0] == 0
            assert [bytes(r) for r in reader.read()] == [b"counted!"] * 5
        assert counter(count) == 45
        assert bpf_info.prog_info(loaded.prog_fds[0]).name == bundle.programs[0].name
        assert [bpf_info.map_info(fd).name for fd in loaded.map_fds] == [m.name for m in bundle.maps]
        assert counter(constant) == 7


def test_constants_cannot_be_changed(suffix: str) -> None:
    """Frozen for user space, read-only for programs, not mappable for writing."""
    bundle = samples.named(samples.small(), suffix)
    with load(bundle, seal_locally(bundle)) as loaded:
        constant = loaded.map_fds[2]
        with pytest.raises(PermissionError):
            bpf.map_update(constant, KEY, bytes(8))
        with pytest.raises(OSError, match=r"Invalid|permitted|denied"):
            mmap.mmap(constant, 4096)
        with pytest.raises(PermissionError):  # the verifier refuses a program that writes
            bpf.prog_load(17, samples.counting(), fds=(constant,))


def test_attached_it_counts_events(suffix: str) -> None:
    bundle = samples.named(samples.tiny(), suffix)
    with load(bundle, seal_locally(bundle)) as loaded:
        with bpf.Fd(raw_tracepoint_open(loaded.prog_fds[0], "sys_enter")):
            for _ in range(100):
                os.stat("/")
        assert counter(loaded.map_fds[0]) >= 100


@pytest.mark.parametrize("cookie", [0, 1 << 63])
def test_the_loader_attaches(suffix: str, cookie: int) -> None:
    """Without a hand of the client's; the link is what keeps it attached."""
    targets = (("btf_trace_sys_enter", 23), ("btf_trace_sys_exit", 23))
    bundle = samples.named(samples.linked(*targets, id_of=samples.kernel_id, cookie=cookie), suffix)
    with load(bundle, seal_locally(bundle)) as loaded:
        for _ in range(100):
            os.stat("/")
        assert sorted(loaded.links) == [0, 1]
        assert all(counter(fd) >= 100 for fd in loaded.map_fds)
        for fd in loaded.links.values():
            assert bpf_info.link_info(fd).prog_id in {bpf_info.prog_info(fd).id for fd in loaded.prog_fds}
        os.close(loaded.links.pop(0))
        time.sleep(0.1)  # for runs that are under way elsewhere
        before = [counter(fd) for fd in loaded.map_fds]
        os.stat("/")
        after = [counter(fd) for fd in loaded.map_fds]
        assert after[0] == before[0]
        assert after[1] > before[1]


def test_a_link_that_the_kernel_refuses(suffix: str) -> None:
    """Says which probe, and the links that were made before are gone."""
    from bpfseal.runtime.attach import AttachError

    good = samples.linked(("btf_trace_sys_enter", 23), id_of=samples.kernel_id)
    bad = samples.program("raw", samples.counting(0), linked=True)  # of a type that no loader can link
    bundle = samples.named(msgspec.structs.replace(good, programs=(*good.programs, bad)), suffix)
    before = open_fds()
    with pytest.raises(AttachError, match="Unable to attach probe: rawtracepoint:sys_enter: Invalid argument"):
        load(bundle, seal_locally(bundle))
    assert open_fds() == before


def test_rejection_names_the_program_and_its_reason(suffix: str) -> None:
    bundle = samples.named(
        samples.bundle(
            (samples.program("good", samples.counting()), samples.program("bad", samples.broken())),
            (samples.counter_map(),),
        ),
        suffix,
    )
    with pytest.raises(VerifierRejected) as caught:
        load(bundle, seal_locally(bundle))
    assert caught.value.program == f"bad{suffix}"
    assert "R5 !read_ok" in caught.value.log
    assert caught.value.message == (
        f"the kernel's verifier refused program bad{suffix}: R5 !read_ok [EACCES {errno.EACCES}]"
    )


def test_refusals_that_are_not_the_verifiers(suffix: str) -> None:
    cases: list[tuple[dict[str, Any], Stage]] = [
        ({"btf": b"no type information"}, Stage.BTF),
        ({"maps": (msgspec.structs.replace(samples.counter_map(f"big{suffix}"), max_entries=0),)}, Stage.MAP),
        ({"maps": (MapSpec(name=suffix, type=27, key_size=0, value_size=0, max_entries=5000),)}, Stage.MAP),
        ({"maps": (msgspec.structs.replace(samples.counter_map(suffix, 1), type=22, key_size=0),)}, Stage.INITIAL),
        ({"programs": (samples.program(f"p{suffix}", samples.counting(), 999),)}, Stage.PROGRAM),
    ]
    for change, stage in cases:
        bundle = msgspec.structs.replace(samples.named(samples.tiny(), suffix), **change)
        with pytest.raises(LoadRefused) as caught:
            load(bundle, seal_locally(bundle))
        assert caught.value.stage == stage, caught.value.message


def sequence(loader: Loader, context: bytes | None = None, limit: int | None = None) -> tuple[int, bytes]:
    """The load sequence by hand, with at most `limit` more descriptors while the loader runs."""
    with bpf.Fd(bpf.map_create(2, 4, len(loader.metadata), 1)) as meta:
        bpf.map_update(meta.number, KEY, loader.metadata)
        with bpf.Fd(bpf.prog_load(31, loader.insns, flags=16, fds=(meta.number,))) as program:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            if limit is not None:
                used = set(open_fds())
                free = (n for n in itertools.count() if n not in used)
                resource.setrlimit(resource.RLIMIT_NOFILE, (next(itertools.islice(free, limit, None)), hard))
            try:
                return bpf.prog_run(program.number, context or make_context(loader.ctx_size))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_failure_at_every_nested_call_leaves_nothing(suffix: str) -> None:
    """No descriptor left for the n-th object, for every n: the loader says where, and closes what it made."""
    bundle = samples.named(samples.many(6, 5), suffix)
    objects = 11
    loader = emit(bundle, Terms(abi=0))
    before = open_fds()
    for room in range(objects):
        returned, context = sequence(loader, limit=room)
        result = parse_context(context, 6, 5)
        stage, index = (Stage.MAP, room) if room < 6 else (Stage.PROGRAM, room - 6)
        assert (returned, result) == (-errno.EMFILE, LoadResult((), (), stage, index, errno.EMFILE))
        assert open_fds() == before
    returned, context = sequence(loader, limit=objects)
    result = parse_context(context, 6, 5)
    assert (returned, result.stage) == (0, Stage.DONE)
    for fd in (*result.map_fds, *result.prog_fds):
        os.close(fd)


def held() -> list[int]:
    """Open descriptors, found without needing another one."""
    found = []
    for fd in range(512):
        with contextlib.suppress(OSError):
            os.fstat(fd)
            found.append(fd)
    return found


@pytest.mark.parametrize("room", range(9))
def test_short_of_descriptors_it_says_so_and_leaves_nothing(suffix: str, room: int) -> None:
    """`load` as a whole with `room` descriptors and no way to have more: one clear error until there are enough (the
    metadata map, the loader, three maps and a program)."""
    bundle = samples.named(samples.small(), suffix)
    sealed = seal_locally(bundle)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        before = held()
        free = (n for n in itertools.count() if n not in before)
        limit = next(itertools.islice(free, room, None))
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        try:
            loaded = load(bundle, sealed)
            text = f"loaded {len(loaded.map_fds)} {len(loaded.prog_fds)}"
            loaded.close()
        except LoadRefused as error:
            text = f"{error.code} {error.hint}"
        except BaseException as error:
            text = repr(error)
        os.write(write, f"{text} {held() == before}".encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    expected = f"{errno.EMFILE} raise the limit of open files (ulimit -n) True" if room < 6 else "loaded 3 1 True"
    assert said == expected


def test_random_contexts_change_nothing(suffix: str) -> None:
    """Whatever the context holds, what is loaded is what was sealed, or nothing."""
    bundle = samples.named(samples.small(), suffix)
    loader = emit(bundle, Terms(abi=0))
    expected = None
    loads = 0
    for trial in range(300):
        context = bytearray(os.urandom(loader.ctx_size))
        if trial % 3 == 0:  # a valid "no log", or every context is refused
            context[:16] = bytes(16)
        returned, out = sequence(loader, bytes(context))
        result = parse_context(out, 3, 1)
        if result.stage != Stage.DONE:
            assert returned < 0
            continue
        loads += 1
        assert returned == 0
        shape = (
            bpf_info.prog_info(result.prog_fds[0]).tag,
            [msgspec_free(bpf_info.map_info(fd)) for fd in result.map_fds],
            counter(result.map_fds[0]),
            counter(result.map_fds[2]),
        )
        expected = expected or shape
        assert shape == expected
        for fd in (*result.map_fds, *result.prog_fds):
            os.close(fd)
    assert loads >= 100


def msgspec_free(info: bpf_info.MapInfo) -> tuple[object, ...]:
    """A map's properties without its id."""
    return (info.type, info.key_size, info.value_size, info.max_entries, info.flags, info.name)


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        (Terms(abi=0, uid=12345), errno.EPERM),
        (Terms(abi=0, uid=(1 << 32) - 3), errno.EPERM),
        (Terms(abi=0, tgid=1), errno.ESRCH),
        (Terms(abi=0, deadline_ns=1), errno.EKEYEXPIRED),
    ],
)
def test_terms_refuse(suffix: str, terms: Terms, code: int) -> None:
    bundle = samples.named(samples.tiny(), suffix)
    loader = emit(bundle, terms)
    sealed = msgspec.structs.replace(seal_locally(bundle), loader=loader.insns, metadata=loader.metadata)
    with pytest.raises(LoadRefused) as caught:
        load(bundle, sealed)
    assert (caught.value.stage, caught.value.code) == (Stage.CHECK, code)


def test_terms_admit(suffix: str) -> None:
    bundle = samples.named(samples.tiny(), suffix)
    deadline = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 60 * 10**9
    loader = emit(bundle, Terms(abi=0, uid=os.getuid(), tgid=os.getpid(), deadline_ns=deadline))
    sealed = msgspec.structs.replace(seal_locally(bundle), loader=loader.insns, metadata=loader.metadata)
    load(bundle, sealed).close()


def test_one_metadata_map_is_good_for_one_run(suffix: str) -> None:
    bundle = samples.named(samples.tiny(), suffix)
    loader = emit(bundle, Terms(abi=0))
    with bpf.Fd(bpf.map_create(2, 4, len(loader.metadata), 1)) as meta:
        bpf.map_update(meta.number, KEY, loader.metadata)
        with bpf.Fd(bpf.prog_load(31, loader.insns, flags=16, fds=(meta.number,))) as program:
            first, context = bpf.prog_run(program.number, make_context(loader.ctx_size))
            for fd in struct.unpack_from("<ii", context, 32):
                os.close(fd)
            assert first == 0
            assert bpf.prog_run(program.number, make_context(loader.ctx_size))[0] == -errno.EALREADY


@pytest.mark.slow
def test_a_thousand_maps_and_programs(suffix: str) -> None:
    bundle = samples.named(samples.many(1000, 1000), suffix)
    with load(bundle, seal_locally(bundle)) as loaded:
        assert len(set(loaded.map_fds + loaded.prog_fds)) == 2000
        assert bpf.prog_run(loaded.prog_fds[999], bytes(16))[0] == 0
        assert counter(loaded.map_fds[999]) == 1000
