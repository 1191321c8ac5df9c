"""Entries and returns of the same functions: one program and one link."""

from __future__ import annotations

import subprocess

import pytest

from bpfseal.compiler.options import Options
from bpfseal.compiler.sessions import IS_RETURN, KPROBE_SESSION, UPROBE_SESSION
from bpfseal.signer.cfg import split
from bpfseal.signer.guard import guarded
from bpfseal.signer.insn import decode
from tests.compiler.harness import checked, compiled, environment, run

SOURCE = """
__attribute__((noinline)) int first(int x) { __asm__ volatile(""); return x + 1; }
__attribute__((noinline)) int fifth(int x) { __asm__ volatile(""); return x + 5; }
int main(int argc, char **argv) { int s = 0; for (int i = 0; i < 10; i++) s += first(i) + fifth(i); return s == 0; }
"""
MULTI = 48

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    types = environment().world.types
    if types is None or not types.kfunc(IS_RETURN):
        pytest.skip("this kernel has no sessions")
    path = tmp_path_factory.mktemp("session") / "calls"
    path.with_suffix(".c").write_text(SOURCE)
    subprocess.run(["gcc", "-O1", "-o", path, path.with_suffix(".c")], check=True)
    return str(path)


def kinds(text: str) -> list[tuple[int, dict[str, int]]]:
    bundle = checked(compiled(text))
    return [(p.expected_attach_type, dict(p.attach[0].params)) for p in bundle.programs]


def test_one_program_for_both_ends(program: str) -> None:
    """The end comes first in the script, too; other programs are as they were."""
    entry, end = f"uprobe:{program}:fi* {{ @ = count(); }}", f"uretprobe:{program}:fi* {{ @b = count(); }}"
    session = (UPROBE_SESSION, {"pid": -1, "session": 1})
    assert kinds(entry + end) == kinds(end + entry) == [session]
    assert session in kinds(f"{entry} uprobe:{program}:main {{ @m = 1; }} {end}")
    assert kinds(entry) == [(MULTI, {"pid": -1})]


@pytest.mark.parametrize(
    "text",
    [
        "uprobe:{}:fi* {{ @ = 1; }} uretprobe:{}:f*t* {{ @ = 1; }} uprobe:{}:f*t* {{ @ = 1; }}",  # which of the two?
        "uprobe:{}:fi* {{ @ = 1; }} uretprobe:{}:first {{ @ = 1; }} uretprobe:{}:fifth {{ @ = 1; }}",  # not the same
    ],
)
def test_apart_where_it_is_not_clear(program: str, text: str) -> None:
    found = kinds(text.format(*[program] * 3))
    assert len(found) == 3
    assert not any("session" in params for _, params in found)


@pytest.mark.usefixtures("host")
def test_each_end_has_its_own_names_arguments_and_filter(program: str) -> None:
    text = f"""
        uprobe:{program}:fi* /arg0 < 5/ {{ @in[probe] = sum(arg0); @start[tid] = nsecs; }}
        uretprobe:{program}:fi* /retval >= 5/ {{ @out[probe] = sum(retval); @took = count(); }}"""
    found = run(text, act=lambda: subprocess.run([program], check=True) and None)
    assert f"@in[uprobe:{program}:fifth]: 10\n" in found
    assert f"@in[uprobe:{program}:first]: 10\n" in found
    assert f"@out[uretprobe:{program}:fifth]: 95\n" in found
    assert f"@out[uretprobe:{program}:first]: 45\n" in found
    assert "@took: 16\n" in found


def test_addresses_are_guarded_before_anything_else() -> None:
    """Where the helper demands it, the guard stands in front of both ends."""
    types = environment().world.types
    if types is None or not types.kfunc(IS_RETURN):
        pytest.skip("this kernel has no sessions")
    addresses = {"vfs_read": 0xFFFFFFFF81001000, "vfs_readv": 0xFFFFFFFF81002000}
    text = "kprobe:vfs_read,kprobe:vfs_readv { @ = 1; } kretprobe:vfs_read,kretprobe:vfs_readv { @ = 2; }"
    (program,) = checked(compiled(text, Options(addresses=addresses))).programs
    assert program.expected_attach_type == KPROBE_SESSION
    insns = decode(program.insns)
    assert guarded(insns, split(insns)) == frozenset(addresses.values())


ONE = "kprobe:vfs_read {{ @ = {}; }} kretprobe:{} {{ @ = retval; }}"


@pytest.mark.parametrize(
    ("text", "programs"),
    [
        (ONE.format("arg0", "vfs_read"), 1),
        ("kretprobe:vfs_read { @ = retval; } begin { @ = 1; } kprobe:vfs_read { @ = 2; }", 2),
        (ONE.format("arg0", "vfs_write"), 2),
        (ONE.format('reg("bx")', "vfs_read"), 2),  # which a session's programs do not see
        ("kprobe:vfs_read+4 { @ = 1; } kretprobe:vfs_read { @ = 2; }", 2),
        ("kprobe:vfs_read { @ = 1; } kprobe:vfs_read { @ = 1; } kretprobe:vfs_read { @ = 2; }", 3),  # which of the two?
    ],
)
def test_one_function_of_the_kernel(text: str, programs: int) -> None:
    types = environment().world.types
    if types is None or not types.kfunc(IS_RETURN):
        pytest.skip("this kernel has no sessions")
    found = checked(compiled(text)).programs
    assert len(found) == programs
    sessions = [p.attach[0] for p in found if p.expected_attach_type == KPROBE_SESSION]
    if len({"kprobe", "kretprobe"} & {a.kind for p in found for a in p.attach}) == 0:
        (attach,) = sessions
        assert (attach.kind, attach.symbols, attach.params) == ("kprobe_multi", ("vfs_read",), {"session": 1})
    else:
        assert not sessions
