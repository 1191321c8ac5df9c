"""What goes wrong with probes is said clearly, or turns out right: targets that are gone or hidden, too many of them,
several of one name."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import bpfseal as api
from bpfseal.dsl.env import AttachSpec
from bpfseal.dsl.points import specs
from bpfseal.errors import BpfsealError
from bpfseal.runtime.attach import AttachContext, AttachError, attach
from bpfseal.runtime.environment import RealEnvironment
from bpfseal.runtime.listing import list_probes
from bpfseal.runtime.probes import programs, provider
from bpfseal.runtime.probes.world import World
from bpfseal.signer.bundle import Attach
from tests.probes import kit
from tests.probes.test_environment import needs_btf

HAS_KPROBES = Path("/sys/bus/event_source/devices/kprobe").exists()


def bpfseal(*arguments: str, prefix: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-m", "bpfseal", "-q", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )


def clear(done: subprocess.CompletedProcess[str], message: str) -> None:
    """Failed with one error that says `message`."""
    assert done.returncode not in (0, -11), done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    assert message in done.stderr


class TestUnknown:
    @needs_btf
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("fentry:no_such_module:f", "module no_such_module in probe fentry:no_such_module:f is not loaded"),
            ("fexit:no_such_module:f", "is not loaded"),
            ("kprobe:no_such_module:f", "is not loaded"),
            ("uprobe:/no/such/file:f", "does not exist"),
        ],
    )
    def test_places(self, text: str, message: str) -> None:
        (spec,) = specs(text)
        with pytest.raises(BpfsealError, match=message):
            RealEnvironment().expand(spec)

    @needs_btf
    def test_one_name_in_two_modules(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Only a name without its module is unclear."""
        world = World()
        types = world.types
        assert types is not None
        kernel = types.btf()
        assert kernel is not None
        monkeypatch.setattr(types, "modules", lambda: ["first", "second"])
        monkeypatch.setattr(types, "find", lambda letter, name, module="": len(kernel) + 7 if module else 0)
        with pytest.raises(BpfsealError, match="shared is in several modules: first, second"):
            provider("fentry").expand(world, AttachSpec("fentry", ("shared",), "fentry:shared"))

    @pytest.mark.host
    @kit.needs_bpf
    @pytest.mark.skipif(not HAS_KPROBES, reason="this kernel has no kprobes")
    def test_one_name_twice_in_the_kernel(self) -> None:
        with open("/proc/kallsyms") as file:
            plain = [line.split()[2] for line in file if line.count("[") == 0 and line.split()[1] in "tT"]
        listed = {line.removeprefix("kprobe:") for line in list_probes("kprobe:*")}
        seen: set[str] = set()
        twice = next(n for n in plain if n in listed and (n in seen or seen.add(n)))  # type: ignore[func-returns-value]
        with kit.counter(kit.KPROBE) as program, pytest.raises(AttachError, match="several functions of that name"):
            attach(Attach(kind="kprobe", probe=f"kprobe:{twice}", target=twice), program.prog, AttachContext())


def descriptors() -> set[str]:
    """Those of BPF programs in this process."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of this very listing
            if "bpf-prog" in os.readlink(f"/proc/self/fd/{name}"):
                found.add(name)
    return found


@pytest.mark.host
@kit.needs_bpf
class TestPrograms:
    @contextmanager
    def running(self) -> Iterator[None]:
        """A program of ours that has type information, in the kernel."""
        script = "begin { @a[1] = 1; } interval:s:1000 { for ($kv : @a) { @b = $kv.0; } }"
        command = [sys.executable, "-m", "bpfseal", "-q", "-e", script]
        environment = {**os.environ, "__BPFTRACE_NOTIFY_PROBES_ATTACHED": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            try:
                assert process.stdout.readline().startswith("__BPFTRACE")
                yield
            finally:
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=60)

    def test_are_listed_and_held_until_they_are_attached_to(self) -> None:
        """(Where the kernel has trampolines, test_table.py counts their calls.)"""
        before = descriptors()
        with self.running():
            lines = list(list_probes("fentry:bpf:*"))
            assert any(re.fullmatch(r"fentry:bpf:\d+:\w+", line) for line in lines), lines
            name = next(x for x in lines if re.search(r":p\d$", x)).removeprefix("fentry:")
            assert "    void * a0" in list_probes(f"fentry:{name}", verbose=True)
            (spec,) = specs(f"fentry:{name}")
            (point,) = RealEnvironment().expand(spec)
            assert point.name == f"fentry:{name}"
            assert re.fullmatch(r"prog-\d+@\d+", point.module)
            assert descriptors() > before
            programs.release()
            assert descriptors() == before

    def test_a_wrong_script_holds_none(self) -> None:
        before = descriptors()
        with self.running(), pytest.raises(BpfsealError, match="no_such_function"):
            api.trace("fentry:bpf:* { no_such_function(); }").build(helper=False)
        assert descriptors() == before

    def test_unknown(self) -> None:
        (spec,) = specs("fentry:bpf:no_such_program")
        assert list(RealEnvironment().expand(spec)) == []


@pytest.mark.host
@kit.needs_bpf
class TestProcesses:
    def test_gone_before_it_is_attached(self, tmp_path: Path) -> None:
        exe = kit.compile_c(
            tmp_path / "sleeper", "#include <unistd.h>\nint f(void) { return 1; }\nint main() { return f(); }"
        )
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        from bpfseal.runtime.elf import Elf

        offset = Elf(str(exe)).symbol("f").offset
        spec = Attach(kind="uprobe", probe="uprobe:x:f", target=str(exe), params={"offset": offset, "pid": -1})
        with kit.counter(kit.KPROBE) as program, pytest.raises(AttachError, match="no such process"):
            attach(spec, program.prog, AttachContext(pid=child))

    @pytest.mark.slow
    def test_exits_while_it_is_attached(self) -> None:
        """Whenever it goes, the trace ends, with its maps or one clear error."""
        random.seed(5)
        ends = []
        for _ in range(12):
            target = subprocess.Popen(["sleep", "100"])
            command = [sys.executable, "-m", "bpfseal", "-q", "-p", str(target.pid), "-e"]
            program = 'uprobe:libc:malloc* { @ = count(); } profile:hz:99 { @p = count(); } end { printf("over\\n"); }'
            with subprocess.Popen(
                [*command, program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            ) as trace:
                time.sleep(random.random() * 2.5)
                target.kill()
                target.wait()
                out, err = trace.communicate(timeout=60)
            assert "Traceback" not in err, err
            assert (trace.returncode == 0 and "over" in out) or "ERROR" in err, (trace.returncode, out, err)
            ends.append(trace.returncode)
        assert len(ends) == 12

    @pytest.mark.slow
    @pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare")
    def test_in_a_mount_namespace_of_its_own(self, tmp_path: Path) -> None:
        """A program that only the target can see, by the path that it has there."""
        hidden = tmp_path / "hidden"
        hidden.mkdir()
        exe = kit.compile_c(
            tmp_path / "contained",
            "#include <unistd.h>\n__attribute__((noinline)) int step(int n) { return n + 1; }\n"
            "int main() { char c; for (;;) { if (read(0, &c, 1) != 1) return 0; step(c); } }",
        )
        script = f"mount -t tmpfs none {hidden} && cp {exe} {hidden}/app && exec {hidden}/app"
        with subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdin=subprocess.PIPE) as target:
            assert target.stdin is not None
            end = time.monotonic() + 20
            while os.readlink(f"/proc/{target.pid}/exe") != f"{hidden}/app" and time.monotonic() < end:
                time.sleep(0.02)
            assert not (hidden / "app").exists()
            program = f"uprobe:{hidden}/app:step {{ @ = count(); if (arg0 == 33) {{ exit(); }} }}"
            command = [sys.executable, "-m", "bpfseal", "-q", "-B", "line", "-p", str(target.pid), "-e", program]
            environment = {**os.environ, "__BPFTRACE_NOTIFY_PROBES_ATTACHED": "1"}
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as trace:
                assert trace.stdout is not None
                assert trace.stdout.readline().startswith("__BPFTRACE")
                target.stdin.write(b"." * 41 + b"!")  # "!" is 33
                target.stdin.flush()
                out, _ = trace.communicate(timeout=60)
            target.stdin.close()
        assert "@: 42" in out

    def test_no_permission(self) -> None:
        if os.geteuid() != 0 or shutil.which("setpriv") is None:
            pytest.skip("needs root and setpriv")
        drop = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--bounding-set=-all")
        probe = subprocess.run([*drop, sys.executable, "-c", "import bpfseal"], capture_output=True)
        if probe.returncode:
            pytest.skip("other users cannot read the interpreter here")
        done = bpfseal("-e", "rawtracepoint:sys_enter { @ = count(); }", prefix=drop, HOME="/nonexistent")
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert re.search(r"root|CAP_BPF|permi|permitted", done.stderr, re.I), done.stderr


COUNT = 10_000


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    functions = "".join(f"int many_{n}(void) {{ return {n}; }}\n" for n in range(COUNT))
    main = "int main() { return many_0() + many_777() + many_9999() > 5 ? 0 : 1; }\n"
    return kit.compile_c(tmp_path_factory.mktemp("many") / "many", functions + main)


@pytest.mark.host
@pytest.mark.slow
@kit.needs_bpf
class TestTenThousand:
    def test_limit_says_how_to_raise_it(self, many: Path) -> None:
        clear(bpfseal("-e", f"uprobe:{many}:many_* {{ @ = count(); }}"), "at most")

    def test_attaches_by_one_link(self, many: Path) -> None:
        before = time.monotonic()
        done = bpfseal(
            "-c", str(many), "-e", f"uprobe:{many}:many_* {{ @ = count(); }}", BPFTRACE_MAX_PROBES=str(COUNT)
        )
        assert done.returncode == 0, done.stderr
        assert "@: 3" in done.stdout, done.stdout + done.stderr
        assert time.monotonic() - before < 120

    def test_names_of_ten_thousand(self, many: Path) -> None:
        """`probe` of the functions that were called, one program for all."""
        limits = {f"BPFTRACE_MAX_{what}": str(COUNT) for what in ("PROBES", "BPF_PROGS")}
        program = f"uprobe:{many}:many_* {{ @[probe] = count(); }}"
        done = bpfseal("-c", str(many), "-e", program, **limits)
        assert done.returncode == 0, done.stderr
        assert sorted(re.findall(r":many_(\d+)\]: 1", done.stdout)) == ["0", "777", "9999"]
