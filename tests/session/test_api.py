"""The Python API on this kernel."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
import sys
import threading
import time
from pathlib import Path

import pytest

import bpfseal
from bpfseal import BpfsealError

pytestmark = pytest.mark.host


def test_events_and_maps() -> None:
    with bpfseal.trace(
        'BEGIN { printf("%d %s\\n", 7, "x"); print((1, "a")); @m["k"] = 3; @c = count(); exit(); }'
    ) as t:
        events = list(t.events(timeout=20))
        assert [(e.action, e.values, e.text) for e in events] == [
            ("printf", (7, "x"), "7 x\n"),
            ("print", ((1, "a"),), "(1, a)"),
        ]
        assert t.maps["@m"] == {"k": 3}
    assert t.maps["@c"] == {None: 1}


def test_timeout_ends_waiting() -> None:
    with bpfseal.trace("interval:s:60 { exit(); }") as t:
        start = time.monotonic()
        assert list(t.events(timeout=0.5)) == []
        assert time.monotonic() - start < 10


def test_stop_from_another_thread() -> None:
    with bpfseal.trace("interval:s:60 { exit(); } END { @ended = 1; }") as t:
        threading.Timer(0.5, t.stop).start()
        assert list(t.events(timeout=20)) == []
    assert t.maps["@ended"] == {None: 1}


def test_parameters_and_child() -> None:
    with bpfseal.trace("tracepoint:syscalls:sys_enter_execve /pid == cpid/ { @ = $1; }", "42", cmd="/bin/true") as t:
        t.run(20)
    assert t.maps["@"] == {None: 42}


def test_nothing_stays_open() -> None:
    with bpfseal.trace("BEGIN { exit(); }") as t:
        t.run(20)
    gc.collect()  # what earlier tests left to the collector would count otherwise
    before = len(os.listdir("/proc/self/fd"))
    with bpfseal.trace("BEGIN { @x = 1; exit(); }") as t:
        t.run(20)
    assert len(os.listdir("/proc/self/fd")) == before


def test_wrong_script() -> None:
    with pytest.raises(BpfsealError), bpfseal.trace("BEGIN { exit( }"):
        pass


def test_full_maps_and_errors_are_events() -> None:
    with bpfseal.trace(
        "config = { max_map_keys = 1 } BEGIN { @m[1] = 1; @m[2] = 1; @z = 4 / @q; @q = 0; exit(); }"
    ) as t:
        t.run(20)
        actions = {event.action: event.values for event in t.events(timeout=1)}
    assert actions["map_full"] == ("@m", 1, 1)
    assert actions["runtime_error"] == ("divide_by_zero", 0)


def test_close_from_another_thread_ends_who_waits() -> None:
    with bpfseal.trace("interval:s:60 { exit(); } END { @ended = 1; }") as t:
        closing = threading.Timer(0.5, t.close)
        closing.start()
        start = time.monotonic()
        assert list(t) == []
        closing.join(20)
        assert time.monotonic() - start < 20
        assert not closing.is_alive()
        assert t.maps["@ended"] == {None: 1}


def test_maps_from_another_thread_while_events_are_awaited() -> None:
    seen: list[object] = []

    def look() -> None:
        seen.append(t.maps["@x"])
        t.stop()

    with bpfseal.trace("BEGIN { @x = 5; } interval:s:60 { exit(); }") as t:
        threading.Timer(0.5, look).start()
        t.run(30)
    assert seen == [{None: 5}]


def test_what_was_not_taken_stays_readable() -> None:
    """Stacks too, which only the session can look up."""
    with bpfseal.trace('BEGIN { printf("%s", kstack(1)); print((1, kstack(1))); @[kstack(1)] = 1; exit(); }') as t:
        pass
    first, second = t
    assert "bpf_prog" in first.text
    assert "bpf_prog" in second.text
    pytest.importorskip("pandas")
    assert "bpf_prog" in str(t.table("@").pandas())


def test_names_of_values() -> None:
    """From the program's text; what is no name gets a number."""
    with bpfseal.trace('BEGIN { $a = 1; printf("%d %d %d", $a, pid, 1 + 2); print(comm); exit(); }') as t:
        first, second = list(t)
    assert first.values._fields[:2] == ("a", "pid")  # type: ignore[attr-defined]
    assert first.values[2] == 3
    assert second.values._fields == ("comm",)  # type: ignore[attr-defined]


BUSY = (
    'tracepoint:syscalls:sys_enter_getppid /pid == cpid/ { @n++; if (@n % 2) { printf("%lld %s", @n, comm); } '
    'else { printf("%lld", @n * 10); } } END { printf("%s", "end"); }'
)


def test_a_busy_stream_keeps_order_and_account() -> None:
    """Machine code takes over at some point; nothing changes."""
    calls = f"{sys.executable} -c 'import os\nfor _ in range(60000): os.getppid()'"
    with bpfseal.trace(BUSY, cmd=calls) as t:
        time.sleep(1)  # so that there is a lot to read at once
        numbers = [event.values[0] for event in t if event.action == "printf"]
    assert numbers.pop() == "end"
    counted = [number if number % 2 else number // 10 for number in numbers]
    assert counted == sorted(counted)
    assert len(counted) + t.lost == t.maps["@n"][None] >= 60000


def test_batches_of_several_sites() -> None:
    pytest.importorskip("pandas")
    calls = f"{sys.executable} -c 'import os\nfor _ in range(3000): os.getppid()'"
    rows = 0
    with bpfseal.trace(BUSY, cmd=calls) as t:
        for batch in t.batches():
            arrays = batch.numpy()
            frame = batch.pandas()
            assert len(frame) <= len(batch)
            rows += len(frame)
            if isinstance(arrays, dict):
                assert sum(map(len, arrays.values())) == len(frame)
    assert rows + t.lost == t.maps["@n"][None] + 1


def test_columns_of_maps() -> None:
    pytest.importorskip("pandas")
    with bpfseal.trace(
        'BEGIN { @a[1, 2] = 3; @u[(uint64)-1] = 1; @s["x"] = 1; @h[1] = hist(5); @c = count(); exit(); }'
    ) as t:
        t.run(20)
    keys, values = t.table("a").numpy()
    assert (keys.tolist(), values.tolist()) == ([[1, 2]], [3])
    assert t.table("@u").numpy()[0].tolist() == [2**64 - 1]
    with pytest.raises(BpfsealError, match="not a map from numbers"):
        t.table("@s").numpy()
    assert t.table("@h").pandas().iloc[0].tolist() == [1, 4, 8, 1]
    with pytest.raises(KeyError):
        t.table("@none")


def test_missing_library_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    with bpfseal.trace("BEGIN { @[1] = 1; exit(); }") as t:
        t.run(20)
    with pytest.raises(BpfsealError, match="needs polars"):
        t.table("@").polars()


def test_asynchronous_trace_ends_with_its_task() -> None:
    """Cancelled while it waits: nothing is left."""

    async def wait() -> None:
        async with bpfseal.trace("interval:s:60 { exit(); }") as t:
            async for _ in t:
                raise AssertionError

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wait(), 2)

    asyncio.run(main())


def test_packets_to_a_file(tmp_path: Path) -> None:
    """What went over the loopback device to a port of ours, whole."""
    path = tmp_path / "packets.pcap"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        port = receiver.getsockname()[1]
        with bpfseal.trace(f"tc:lo:ingress /args.dport == {port}/ {{ capture(); }}", pcap=str(path)) as t:
            for number in range(3):
                receiver.sendto(f"packet {number}".encode(), ("127.0.0.1", port))
            deadline = time.monotonic() + 30
            while t.captured < 3 and time.monotonic() < deadline:
                t.run(0.05)
    assert t.captured == 3
    data = path.read_bytes()
    at, seen = 24, []
    while at < len(data):
        _, _, length, whole = struct.unpack_from("<IIII", data, at)
        assert length == whole
        seen.append(data[at + 16 : at + 16 + length][-8:])
        at += 16 + length
    assert seen == [b"packet 0", b"packet 1", b"packet 2"]


def test_a_file_for_packets_needs_a_capture(tmp_path: Path) -> None:
    path = tmp_path / "packets.pcap"
    trace = bpfseal.trace("BEGIN { exit(); }", pcap=str(path))
    with pytest.raises(BpfsealError, match="the program has no capture"), trace:
        pass
    assert not path.exists()
    assert trace.captured == 0


def test_system_with_unsafe() -> None:
    with bpfseal.trace('BEGIN { system("echo hi"); exit(); }', unsafe=True) as t:
        (event,) = t
    assert (event.action, event.text) == ("syscall", "hi\n")


def test_contents_in_the_order_of_printing() -> None:
    with bpfseal.trace("BEGIN { @b[2] = 1; @b[1] = 2; @a = 3; exit(); }") as t:
        t.run()
        there = [(one.name, one.items) for one in t.contents()]
    assert there == [("@a", [(None, 3)]), ("@b", [(2, 1), (1, 2)])]
    assert [(one.name, one.items) for one in t.contents()] == there
    assert [one.items for one in t.contents("@a")] == [[(None, 3)]]


def test_watchers_look_until_the_end() -> None:
    class Watcher:
        seconds = 0.01
        seen: list[int] = []  # noqa: RUF012

        def look(self, now: float) -> None:
            self.seen += [value for one in t.contents("@n") for _, value in one.items]

    with bpfseal.trace("interval:ms:20 { @n++; if (@n == 20) { exit(); } } END { @n = 99; }") as t:
        t.run(watchers=[Watcher()])
    assert Watcher.seen[-1] == 99
    assert Watcher.seen == sorted(Watcher.seen)
    assert len(Watcher.seen) > 2


def test_a_trace_that_is_not_loaded_has_no_names() -> None:
    with pytest.raises(BpfsealError, match="not loaded"):
        _ = bpfseal.trace("BEGIN { exit(); }").resolver
