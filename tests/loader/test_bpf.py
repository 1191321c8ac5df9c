"""Map wrappers on the running kernel."""

from __future__ import annotations

import errno
import struct

import pytest

from bpfseal.runtime import bpf

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("bpf_permitted")]


def key(number: int) -> bytes:
    return struct.pack("<I", number)


def test_one_element() -> None:
    with bpf.Fd(bpf.map_create(bpf.MAP_HASH, 4, 8, 4)) as fd:
        assert bpf.map_lookup(fd.number, key(1), 8) is None
        bpf.map_update(fd.number, key(1), b"one.....")
        assert bpf.map_lookup(fd.number, key(1), 8) == b"one....."
        with pytest.raises(FileExistsError):
            bpf.map_update(fd.number, key(1), bytes(8), bpf.NOEXIST)
        assert bpf.map_lookup_and_delete(fd.number, key(1), 8) == b"one....."
        assert not bpf.map_delete(fd.number, key(1))
        for i in range(4):
            bpf.map_update(fd.number, key(i), bytes(8))
        with pytest.raises(OSError, match="long") as full:
            bpf.map_update(fd.number, key(4), bytes(8))
        assert full.value.errno == errno.E2BIG


@pytest.mark.parametrize("entries", [0, 1, 1000, 5000])
def test_items_of_a_hash(entries: int) -> None:
    with bpf.Fd(bpf.map_create(bpf.MAP_HASH, 4, 8, 10000)) as fd:
        for i in range(entries):
            bpf.map_update(fd.number, key(i), struct.pack("<Q", i * i))
        wanted = {(key(i), struct.pack("<Q", i * i)) for i in range(entries)}
        items = list(bpf.map_items(fd.number, 4, 8, 10000))
        assert len(items) == entries
        assert set(items) == wanted
        assert set(bpf.map_keys(fd.number, 4)) == {k for k, _ in wanted}
        assert set(bpf.map_items(fd.number, 4, 8, 10000, delete=True)) == wanted
        assert list(bpf.map_items(fd.number, 4, 8, 10000)) == []


def test_items_of_an_array_and_of_a_type_without_batches() -> None:
    with bpf.Fd(bpf.map_create(bpf.MAP_ARRAY, 4, 8, 3)) as fd:
        bpf.map_update(fd.number, key(2), b"two.....")
        assert list(bpf.map_items(fd.number, 4, 8, 3)) == [
            (key(0), bytes(8)),
            (key(1), bytes(8)),
            (key(2), b"two....."),
        ]
    with bpf.Fd(bpf.map_create(bpf.MAP_STACK_TRACE, 4, 8 * 16, 8)) as fd:
        assert list(bpf.map_items(fd.number, 4, 8 * 16, 8)) == []


def test_per_cpu() -> None:
    values = [struct.pack("<I", cpu + 1) for cpu in range(bpf.possible_cpus())]
    size = bpf.per_cpu_stride(4) * bpf.possible_cpus()
    with bpf.Fd(bpf.map_create(bpf.MAP_PERCPU_HASH, 4, 4, 100)) as fd:
        assert bpf.map_lookup_percpu(fd.number, key(7), 4) == []
        bpf.map_update_percpu(fd.number, key(7), values)
        assert bpf.map_lookup_percpu(fd.number, key(7), 4) == values
        ((found, raw),) = bpf.map_items(fd.number, 4, size, 100)
        assert found == key(7)
        assert [raw[i : i + 4] for i in range(0, size, 8)] == values
        bpf.map_clear(fd.number, 4, size, 100)
        assert list(bpf.map_keys(fd.number, 4)) == []


def test_a_full_bucket_grows_the_batch() -> None:
    """Batches smaller than the fullest bucket are answered ENOSPC; nothing may be lost or repeated."""
    value = 16384  # 64 elements to a batch
    with bpf.Fd(bpf.map_create(bpf.MAP_HASH, 4, value, 2000, flags=1)) as fd:
        for i in range(1500):
            bpf.map_update(fd.number, key(i), bytes(value))
        assert sorted(k for k, _ in bpf.map_items(fd.number, 4, value, 2000)) == sorted(key(i) for i in range(1500))


def test_fd_closes_once() -> None:
    fd = bpf.Fd(bpf.map_create(bpf.MAP_ARRAY, 4, 8, 1))
    number = fd.number
    fd.close()
    fd.close()
    with pytest.raises(OSError, match="descriptor"):
        bpf.map_lookup(number, key(0), 8)
    kept = bpf.Fd(bpf.map_create(bpf.MAP_ARRAY, 4, 8, 1)).detach()
    assert bpf.map_lookup(kept, key(0), 8) == bytes(8)
    bpf.Fd(kept).close()
