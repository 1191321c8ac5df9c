"""Bundles that name existing maps: which map it is is sealed, what it is is the client's word."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import time
from typing import Any

import msgspec
import pytest

from bpfseal.errors import BpfsealError
from bpfseal.runtime import bpf, bpf_info
from bpfseal.runtime.load import LoadRefused, load, seal_locally
from bpfseal.signer.asm import Asm, R
from bpfseal.signer.bundle import BUNDLE_VERSION, UNDECLARED, Bundle, MapSpec, ProgramSpec, SealRequest
from bpfseal.signer.check import check
from bpfseal.signer.loader_context import CTX_FDS, Stage, make_context, parse_context
from bpfseal.signer.policy import Policy, decide
from bpfseal.signer.refusal import Refusal


def adding(asm: Asm) -> Asm:
    """Adds 1 to the only value of map 0."""
    asm.ld_pseudo(R.R1, 6, 0)
    asm.mov(R.R2, 1)
    asm.atomic_add(8, R.R1, 0, R.R2)
    asm.ret(0)
    return asm


def bundle(*maps: MapSpec, name: str = "adds") -> Bundle:
    program = ProgramSpec(name=name, type=17, insns=adding(Asm()).code(), declared=UNDECLARED, attach=())
    return Bundle(version=BUNDLE_VERSION, programs=(program,), maps=maps)


def existing(id: int = 7, **more: Any) -> MapSpec:
    return MapSpec(name=f"m.{id}", type=2, key_size=4, value_size=8, max_entries=1, id=id, **more)


NEW = MapSpec(name="new", type=2, key_size=4, value_size=8, max_entries=1)


def test_what_is_found_is_what_was_declared() -> None:
    """A program of others declares nothing: policy and log go by the analysis."""
    findings = check(bundle(existing()))
    assert findings.programs[0].attributes == findings.programs[0].found
    assert findings.programs[0].attributes.maps == ((0, ("read", "write")),)


def test_the_record_says_whose_word_it_is() -> None:
    findings = check(bundle(existing(), existing(8)))
    assert findings.record()["maps"] == [
        {"name": "m.7", "existing": 7, "type_by_client": "array"},
        {"name": "m.8", "existing": 8, "type_by_client": "array"},
    ]
    assert findings.map_bytes == 0


@pytest.mark.parametrize(
    ("maps", "words"),
    [
        ((existing(), NEW), "a new map after an existing one"),
        ((existing(initial=bytes(8)),), "contents or types"),
        ((existing(frozen=True),), "contents or types"),
        ((existing(key_btf=1),), "contents or types"),
        ((existing(id=1 << 32),), "not a 32-bit number"),
        ((existing(), msgspec.structs.replace(existing(9), type=31)), "user_ringbuf"),
        ((msgspec.structs.replace(NEW, type=12),), "array_of_maps: only existing ones"),
    ],
)
def test_bad_specifications_are_refused(maps: tuple[MapSpec, ...], words: str) -> None:
    with pytest.raises(Refusal, match=words):
        check(bundle(*maps))


def test_policy_has_to_grant_them() -> None:
    from bpfseal.signer.identity import Identity

    who = Identity(uid=1000, gid=1000, groups=(), pid=1, cgroup_id=0, cgroup_path="")
    text = """
    [[rule]]
    name = "r"
    uid = 1000
    probes = "*"
    classes = ["basic", "map"]
    map_types = "*"
    """
    request = SealRequest(bundle=b"")
    for key, allowed in (("", False), ("existing_maps = true", True)):
        decision = decide(Policy.parse((text + key).encode()), who, check(bundle(existing())), request)
        assert decision.allowed is allowed
        if not allowed:
            assert decision.reasons == ("rule r: map m.7: existing maps are not granted",)


@pytest.mark.host
def test_the_map_with_that_id_is_used(suffix: str) -> None:
    with bpf.Fd(bpf.map_create(2, 4, 8, 1, name=suffix.encode())) as made:
        wanted = bundle(existing(bpf_info.map_info(made.number).id), name=suffix)
        with load(wanted, seal_locally(wanted)) as loaded:
            assert bpf_info.map_info(loaded.map_fds[0]).id == wanted.maps[0].id
            bpf.prog_run(loaded.prog_fds[0], bytes(8))
        assert bpf.map_lookup(made.number, bytes(4), 8) == struct.pack("<Q", 1)


@pytest.mark.host
def test_beside_new_ones(suffix: str) -> None:
    with bpf.Fd(bpf.map_create(2, 4, 8, 1, name=suffix.encode())) as made:
        new = msgspec.structs.replace(NEW, name=suffix, initial=struct.pack("<Q", 5))
        wanted = bundle(new, existing(bpf_info.map_info(made.number).id), name=suffix)
        with load(wanted, seal_locally(wanted)) as loaded:
            assert bpf.map_lookup(loaded.map_fds[0], bytes(4), 8) == struct.pack("<Q", 5)
            assert bpf_info.map_info(loaded.map_fds[1]).id == wanted.maps[1].id


@pytest.mark.host
def test_a_map_that_is_gone(suffix: str) -> None:
    with bpf.Fd(bpf.map_create(2, 4, 8, 1, name=suffix.encode())) as made:
        id = bpf_info.map_info(made.number).id
    wanted = bundle(existing(id), name=suffix)
    deadline = time.monotonic() + 10
    while id in list(bpf_info.ids("map")) and time.monotonic() < deadline:  # freed after a grace period
        time.sleep(0.01)
    with pytest.raises(LoadRefused, match=f"m.{id}") as refused:
        load(wanted, seal_locally(wanted))
    assert (refused.value.code, refused.value.stage) == (errno.ENOENT, Stage.MAP)


@pytest.mark.host
def test_the_context_has_no_say(suffix: str) -> None:
    """Whoever runs the loader puts descriptors of his own where the loader's will be. (What sleepable programs hold
    is freed late: the loader and its map go without the test's name.)"""
    with (
        bpf.Fd(bpf.map_create(2, 4, 8, 1, name=suffix.encode())) as sealed_map,
        bpf.Fd(bpf.map_create(2, 4, 8, 1, name=suffix.encode())) as other,
    ):
        wanted = bundle(existing(bpf_info.map_info(sealed_map.number).id), name=suffix)
        sealed = seal_locally(wanted)
        with bpf.Fd(bpf.map_create(2, 4, len(sealed.metadata), 1, name=b"bpfseal_meta")) as meta:
            bpf.map_update(meta.number, bytes(4), sealed.metadata)
            bpf.map_freeze(meta.number)
            loader = bpf.prog_load(31, sealed.loader, flags=16, name=b"bpfseal_loader", fds=(meta.number,))
            context = bytearray(make_context(sealed.ctx_size))
            struct.pack_into("<ii", context, CTX_FDS, other.number, other.number)
            returned, out = bpf.prog_run(loader, bytes(context))
            os.close(loader)
        assert returned == 0
        result = parse_context(out, 1, 1)
        bpf.prog_run(result.prog_fds[0], bytes(8))
        for fd in result.map_fds + result.prog_fds:
            os.close(fd)
        assert bpf.map_lookup(sealed_map.number, bytes(4), 8) == struct.pack("<Q", 1)
        assert bpf.map_lookup(other.number, bytes(4), 8) == bytes(8)


def test_the_id_is_in_what_is_signed() -> None:
    first, second = (seal_locally(bundle(existing(id))) for id in (7, 8))
    assert first.loader == second.loader
    assert hashlib.sha256(first.metadata).digest() != hashlib.sha256(second.metadata).digest()


def test_a_loader_makes_new_maps_first() -> None:
    with pytest.raises(BpfsealError, match="existing maps come after new ones"):
        seal_locally(bundle(existing(), NEW))
