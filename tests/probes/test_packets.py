"""xdp and tc probes: what they see of packets made byte by byte, and files of packets read back by tcpdump."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bpfseal.errors import BpfsealError
from bpfseal.runtime.build import Request, check
from bpfseal.runtime.listing import list_probes
from bpfseal.runtime.pcap import PacketFile
from bpfseal.runtime.probes.network import ethernet
from tests.probes import frames, inside, kit
from tests.probes.frames import FRAMES, PRINT, Pair, expected
from tests.probes.inside import IN_GUEST

pytestmark = [
    pytest.mark.host,
    # where enforcement is on nobody loads a program of one's own to find out
    pytest.mark.skipif(not (IN_GUEST or kit.can_trace()), reason="needs root and bpf(2)"),
    pytest.mark.skipif(not frames.can_pair(), reason="no network namespaces or veth here"),
]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with frames.pair() as found:
        yield found


class Tracer:
    """A running trace: lines that it has printed."""

    def __init__(self, trace: inside.Trace) -> None:
        self.trace = trace

    def lines(self, count: int) -> list[str]:
        return [self.trace.line() for _ in range(count)]

    def stop(self) -> tuple[str, str]:
        return self.trace.end(signal.SIGINT)


@contextmanager
def tracer(program: str, *options: str) -> Iterator[Tracer]:
    """bpfseal with `program`, attached."""
    trace = inside.Trace("-B", "line", *options, "-e", program)
    try:
        trace.wait_until_attached()
        yield Tracer(trace)
    finally:
        trace.end(signal.SIGINT)


class TestFields:
    @pytest.mark.parametrize("kind", ["xdp:{near}", "tc:{near}:ingress", "tc:{near}:egress"])
    def test_every_frame(self, pair: Pair, kind: str) -> None:
        point = kind.format(near=pair.near)
        with tracer(f"{point} {{ {PRINT}; }}") as trace:
            send = pair.send_near if point.endswith("egress") else pair.send
            send([frame.data for frame in FRAMES])
            assert dict(zip([f.name for f in FRAMES], trace.lines(len(FRAMES)), strict=True)) == dict(
                zip([f.name for f in FRAMES], expected(), strict=True)
            )

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["xdp:{near}", "tc:{near}:ingress"])
    def test_lengths_and_hardware_addresses(self, pair: Pair, kind: str) -> None:
        program = 'printf("%d %s %s %d\\n", args.len, args.smac, args.dmac, args.ifindex)'
        with tracer(f"{kind.format(near=pair.near)} {{ {program}; }}") as trace:
            chosen = [f for f in FRAMES if "vlan" not in f.name and f.name != "nested"]
            pair.send([frame.data for frame in chosen])
            index = Path(f"/sys/class/net/{pair.near}/ifindex").read_text().strip()
            want = [f"{len(f.data)} 02:00:00:00:00:0b 02:00:00:00:00:0a {index}" for f in chosen]
            assert [line.lower() for line in trace.lines(len(chosen))] == want

    @pytest.mark.parametrize("kind", ["xdp:{near}", "tc:{near}:ingress"])
    def test_several_blocks_with_filters(self, pair: Pair, kind: str) -> None:
        """Each block sees every packet, although an interface takes one xdp program only."""
        point = kind.format(near=pair.near)
        program = (
            f'{point} /args.saddr == "10.77.0.2" && args.proto == 17/ {{ @four = count(); }} '
            f'{point} /args.daddr == "fd77::1"/ {{ @six = count(); return; }} '
            f"{point} {{ @all = count(); }} "
            f'{point} /args.smac == "02:00:00:00:00:0b" && args.daddr != "10.77.0.1"/ {{ @others = count(); }}'
        )
        with tracer(program) as trace:
            pair.send([frame.data for frame in FRAMES])
            out, _ = trace.stop()
        fields = [frame.fields for frame in FRAMES]
        assert {name: int(count) for name, count in re.findall(r"@(\w+): (\d+)", out)} == {
            "four": sum(f[3] == "10.77.0.2" and f[5] == 17 for f in fields),
            "six": sum(f[4] == "fd77::1" for f in fields),
            "all": len(FRAMES),
            "others": sum(f[4] != "10.77.0.1" for f in fields),
        }

    @pytest.mark.slow
    def test_whole_record(self, pair: Pair) -> None:
        with tracer(f"xdp:{pair.near} {{ print(args); }}") as trace:
            pair.send([FRAMES[0].data])
            (line,) = trace.lines(1)
        assert ".saddr = 10.77.0.2" in line
        assert ".dport = 53" in line

    @pytest.mark.parametrize(
        "body",
        [
            "return;",
            "if (args.len > 0) { return; } @ = 1;",
            "exit();",
            "@x[args.len] = 1;",
            "@x[1] = 1; for ($kv : @x) { return; }",
            "@x[1] = 1; for ($a : @x) { for ($b : @x) { if ($b.0 > 0) { return; } } }",
        ],
    )
    @pytest.mark.slow
    def test_packets_go_on(self, pair: Pair, body: str) -> None:
        """Whatever way a program ends, the next one gets the packet."""
        with tracer(f"tc:{pair.near}:ingress {{ @behind = count(); }}") as behind:
            with tracer(f"xdp:{pair.near} {{ {body} }} interval:s:60 {{ }}"):
                pair.send([frame.data for frame in FRAMES])
            out, _ = behind.stop()
        assert f"@behind: {len(FRAMES)}" in out


class TestCapture:
    @pytest.mark.parametrize("kind", ["xdp:{near}", "tc:{near}:ingress", "tc:{near}:egress"])
    def test_file(self, pair: Pair, kind: str, tmp_path: Path) -> None:
        """The file has exactly the bytes that were sent, in order, at times that are now."""
        point, file = kind.format(near=pair.near), tmp_path / "packets.pcap"
        before = time.time_ns()
        with tracer(f"{point} {{ capture(); }}", "--pcap", str(file)) as trace:
            send = pair.send_near if point.endswith("egress") else pair.send
            send([frame.data for frame in FRAMES])
            trace.stop()
        packets = read(file)
        assert [data for _, _, data in packets] == [frame.data for frame in FRAMES]
        assert all(length == len(data) for _, length, data in packets)
        times = [when for when, _, _ in packets]
        assert times == sorted(times)
        assert before - 10**9 < times[0] <= times[-1] < time.time_ns() + 10**9

    @pytest.mark.skipif(shutil.which("tcpdump") is None, reason="no tcpdump")
    def test_tcpdump_reads_it(self, pair: Pair, tmp_path: Path) -> None:
        file = tmp_path / "packets.pcap"
        with tracer(f"xdp:{pair.near} /args.dport == 53 || args.tcp_flags/ {{ capture(); }}", "--pcap", str(file)) as t:
            pair.send([frame.data for frame in FRAMES])
            t.stop()
        done = subprocess.run(["tcpdump", "-nn", "--nano", "-r", str(file)], capture_output=True, text=True, check=True)
        lines = done.stdout.splitlines()
        assert len(lines) == sum(f.fields[8] == 53 or bool(f.fields[9]) for f in FRAMES)
        assert "IP 10.77.0.2.5000 > 10.77.0.1.53" in lines[0]
        assert re.match(r"\d\d:\d\d:\d\d\.\d{9} ", lines[0]), "times have nanoseconds"
        assert "Flags [S.]" in lines[1]

    @pytest.mark.slow
    def test_length_limit(self, pair: Pair, tmp_path: Path) -> None:
        file = tmp_path / "packets.pcap"
        with tracer(f"tc:{pair.near}:ingress {{ capture(64); }}", "--pcap", str(file)) as trace:
            pair.send([FRAMES[-1].data])
            trace.stop()
        ((_, length, data),) = read(file)
        assert length == len(FRAMES[-1].data)
        assert data == FRAMES[-1].data[:64]

    def test_lost_packets_are_counted(self, pair: Pair, tmp_path: Path) -> None:
        """A ring of one page and a reader that stands still: what is not in the file is in the count."""
        file, sent = tmp_path / "packets.pcap", 400
        program = f"config = {{ perf_rb_pages = 4 }} xdp:{pair.near} {{ capture(); @ = count(); }}"
        with tracer(program, "--pcap", str(file)) as trace:
            trace.trace.signal(signal.SIGSTOP)
            pair.send([FRAMES[-1].data] * sent)
            trace.trace.signal(signal.SIGCONT)
            out, err = trace.stop()
        assert f"@: {sent}" in out
        captured = len(read(file))
        assert 0 < captured < sent
        lost = sum(map(int, re.findall(r"Lost (\d+) events", out + err)))
        assert captured + lost == sent, out + err

    @pytest.mark.slow
    def test_says_how_many(self, pair: Pair, tmp_path: Path) -> None:
        file = tmp_path / "packets.pcap"
        program = f"xdp:{pair.near} {{ capture(); }} interval:ms:1 {{ exit(); }}"
        trace = inside.Trace("--pcap", str(file), "-e", program, quiet=False)
        _, err = trace.end()
        assert f"0 packets captured in {file}" in err
        assert len(file.read_bytes()) == 24

    def test_needs_a_file(self, pair: Pair) -> None:
        status, _, err = inside.run("-e", f"xdp:{pair.near} {{ capture(); }}")
        assert status != 0
        assert "capture() needs a file to write to" in err
        assert "--pcap FILE" in err

    @pytest.mark.slow
    def test_file_needs_a_capture(self, pair: Pair, tmp_path: Path) -> None:
        file = tmp_path / "packets.pcap"
        status, _, err = inside.run("--pcap", str(file), "-e", "begin { }")
        assert status != 0
        assert "the program has no capture()" in err
        assert not file.exists()


def read(path: Path, link: int = 1) -> list[tuple[int, int, bytes]]:
    """(time in ns, length of the packet, bytes that are there) of a pcap file."""
    data = path.read_bytes()
    magic, major, minor, _, _, _, type = struct.unpack_from("<IHHiIII", data)
    assert (magic, major, minor, type) == (0xA1B23C4D, 2, 4, link)
    at, found = 24, []
    while at < len(data):
        seconds, rest, captured, length = struct.unpack_from("<IIII", data, at)
        found.append((seconds * 10**9 + rest, length, data[at + 16 : at + 16 + captured]))
        at += 16 + captured
    return found


class TestErrors:
    @pytest.mark.parametrize(
        ("program", "message"),
        [
            ("begin {{ capture(); }}", "capture.. cannot be used with special probes"),
            ("xdp:{near} {{ capture(10); }}", "must be at least 64"),
            ("xdp:{near} {{ capture(1000000); }}", "must not exceed"),
            ("xdp:{near} {{ print(args.nothing); }}", "no argument named 'nothing'"),
            ('xdp:{near} /args.saddr == "10.0.0.256"/ {{ }}', "no IPv4 or IPv6 address"),
            ('xdp:{near} /args.smac == "0:1"/ {{ }}', "no hardware address"),
            ("xdp:{near} {{ return 1; }}", "decides what becomes of the packet"),
            ("tc:{near}:ingress {{ return 2; }}", "decides what becomes of the packet"),
            ("xdp:nothing0 {{ }}", "No matches for xdp nothing0"),
            ("tc:{near} {{ }}", "write tc:INTERFACE:ingress|egress"),
            ("tc:{near}:sideways {{ }}", "no direction 'sideways'"),
        ],
    )
    def test_said_clearly(self, pair: Pair, program: str, message: str) -> None:
        with pytest.raises(BpfsealError, match=message):
            check(Request(text=program.format(near=pair.near)))

    def test_unsafe_decides(self, pair: Pair) -> None:
        """With --unsafe a program drops packets: nothing comes through."""
        with tracer(f"tc:{pair.near}:ingress {{ @behind = count(); }}") as behind:
            with tracer(f"xdp:{pair.near} /args.proto == 17/ {{ return 1; }}", "--unsafe"):
                pair.send([frame.data for frame in FRAMES])
            out, _ = behind.stop()
        assert f"@behind: {sum(f.fields[5] != 17 for f in FRAMES)}" in out

    def test_busy_interface(self, pair: Pair) -> None:
        with tracer(f"xdp:{pair.near} {{ }}"):
            status, _, err = inside.run("-e", f"xdp:{pair.near} {{ }}")
        assert status != 0
        assert "another XDP program is on the interface" in err

    def test_links_of_two_types(self, tmp_path: Path) -> None:
        packets = PacketFile(str(tmp_path / "x"), None)
        packets.of_type(1)
        packets.of_type(1)
        with pytest.raises(BpfsealError, match="cannot be in one file"):
            packets.of_type(101)
        packets.close()

    def test_full_disk(self) -> None:
        packets = PacketFile("/dev/full", None)
        with pytest.raises(BpfsealError, match="No space left"):
            packets.of_type(1)


def test_listing(pair: Pair) -> None:
    assert list(list_probes(f"xdp:{pair.near}")) == [f"xdp:{pair.near}"]
    lines = list(list_probes(f"tc:{pair.near}:*", verbose=True))
    assert [line for line in lines if not line.startswith(" ")] == [
        f"tc:{pair.near}:egress",
        f"tc:{pair.near}:ingress",
    ]
    assert "    inet saddr" in lines


def turn_off_gro(interface: str) -> None:
    """`ethtool -K INTERFACE gro off`: the kernel then looks into no packet before programs do."""
    value = ctypes.create_string_buffer(struct.pack("II", 0x2C, 0))  # ETHTOOL_SGRO
    request = struct.pack("16sQ16x", interface.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket.fileno(), 0x8946, request)  # SIOCETHTOOL


@pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="no tunnels here")
def test_headers_that_are_not_in_one_piece(tmp_path: Path) -> None:
    """A tap device that makes packets of which only the first bytes lie where programs may read directly."""
    name, file = f"bpp{os.getpid() % 100000}", tmp_path / "packets.pcap"
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        # TUNSETIFF: IFF_TAP, IFF_NAPI, IFF_NAPI_FRAGS, IFF_NO_PI
        fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1032))
        turn_off_gro(name)
        subprocess.run(["ip", "link", "set", name, "addrgenmode", "none", "up"], check=True)
        chosen = [f for f in FRAMES if len(f.data) > 40]
        with tracer(f"tc:{name}:ingress {{ {PRINT}; capture(); }}", "--pcap", str(file)) as trace:
            for cut in (14, 21, 33):
                for frame in chosen:
                    middle = (cut + len(frame.data)) // 2
                    os.writev(fd, [frame.data[:cut], frame.data[cut:middle], frame.data[middle:]])
                assert trace.lines(len(chosen)) == expected(chosen)
            trace.stop()
        assert [data for _, _, data in read(file)] == [f.data for f in chosen] * 3
    finally:
        os.close(fd)


@contextmanager
def tunnel() -> Iterator[str]:
    """A tun interface that is up, 10.78.0.1/24; what is sent through it is read by nobody."""
    name = f"bpt{os.getpid() % 100000}"
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1001))  # TUNSETIFF: IFF_TUN, IFF_NO_PI
        subprocess.run(["ip", "addr", "add", "10.78.0.1/24", "dev", name], check=True)
        subprocess.run(["ip", "link", "set", name, "addrgenmode", "none", "up"], check=True)
        yield name
    finally:
        os.close(fd)


@pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="no tunnels here")
def test_without_ethernet(tmp_path: Path) -> None:
    """A tunnel's packets start with IP, for the program and in the file."""
    file = tmp_path / "packets.pcap"
    with tunnel() as name:
        assert not ethernet(name)
        assert ethernet("lo")
        program = f"tc:{name}:egress /args.dport == 99/ {{ {PRINT}; capture(); }}"
        with tracer(program, "--pcap", str(file)) as trace:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.bind(("10.78.0.1", 5555))
                sender.sendto(b"hello", ("10.78.0.2", 99))
            assert trace.lines(1) == ["0 2048 2 10.78.0.1 10.78.0.2 17 64 5555 99 0"]
            trace.stop()
    ((_, length, data),) = read(file, link=101)
    assert length == len(data) == 20 + 8 + 5
    assert data[0] == 0x45
    assert data.endswith(b"hello")
