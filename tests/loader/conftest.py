"""`host` tests run where bpf(2) is permitted; what a test makes carries a name of its own, so that others on the
machine do not disturb the check that nothing is left."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from bpfseal.runtime import bpf, bpf_info
from bpfseal.signer.btf import Btf


def why_no_bpf() -> str:
    """Empty when maps and programs can be made here."""
    try:
        os.close(bpf.map_create(bpf.MAP_ARRAY, 4, 8, 1))
        next(iter(bpf_info.ids("map")), None)
    except OSError as error:
        return f"bpf(2) is not permitted here: {error.strerror}"
    return ""


@pytest.fixture(scope="session")
def bpf_permitted() -> None:
    if reason := why_no_bpf():
        pytest.skip(reason)


def open_fds() -> list[int]:
    """Descriptors of this process, without the one the listing itself takes."""
    with os.scandir("/proc/self/fd") as entries:
        numbers = [int(entry.name) for entry in entries]
    return sorted(fd for fd in numbers if os.path.exists(f"/proc/self/fd/{fd}"))


def objects_named(suffix: str) -> list[str]:
    """Maps and programs of this machine whose name ends in `suffix`."""
    found = []
    for kind in ("map", "prog"):
        for id in bpf_info.ids(kind):
            try:
                fd = bpf_info.fd_by_id(kind, id)
            except OSError:
                continue
            name = bpf_info.map_info(fd).name if kind == "map" else bpf_info.prog_info(fd).name
            os.close(fd)
            if name.endswith(suffix):
                found.append(f"{kind} {name}")
    return found


@pytest.fixture
def suffix(bpf_permitted: None) -> Iterator[str]:
    """Part of every name in the test; at the end no map or program with it may be left, and no descriptor."""
    Btf.vmlinux()  # stays mapped, which takes a descriptor
    before = open_fds()
    own = os.urandom(3).hex()
    yield own
    assert open_fds() == before
    for _ in range(6000):  # programs and their maps are freed after a grace period: long on a busy machine
        left = objects_named(own)
        if not left:
            return
        time.sleep(0.02)
    assert left == []
