"""Every system call of a trace's life that makes something fails once: one clear line, the right status, nothing left.

The failures are the kernel's own: a seccomp filter gives the errno for one bpf(2) command, or for one call."""

from __future__ import annotations

import errno
import os
import struct
import sys
import tempfile
from collections.abc import Callable

import pytest

from bpfseal.runtime import bpf_info
from bpfseal.signer.syscall import NUMBERS, address_of, syscall

from .conftest import wait_until

pytestmark = pytest.mark.host

# enum bpf_cmd
COMMANDS = {
    "MAP_CREATE": 0,
    "MAP_LOOKUP_ELEM": 1,
    "MAP_UPDATE_ELEM": 2,
    "MAP_GET_NEXT_KEY": 4,
    "PROG_LOAD": 5,
    "PROG_TEST_RUN": 10,
    "OBJ_GET_INFO_BY_FD": 15,
    "RAW_TRACEPOINT_OPEN": 17,
    "BTF_LOAD": 18,
    "MAP_FREEZE": 22,
    "MAP_LOOKUP_BATCH": 24,
    "LINK_CREATE": 28,
}
_LD, _JEQ, _RET = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000

# Fields in the loader and by the client, perf events, a ring, maps that are read, a program that is run.
PROGRAM = (
    'BEGIN { @b%s[1] = 2; printf("hello\\n"); } tracepoint:syscalls:sys_enter_getppid { @%s[comm] = count(); } '
    "tracepoint:sched:sched_process_exec { @e[args.pid] = hist(args.old_pid); } interval:ms:50 { exit(); } "
    "END { @x[kstack] = count(); }"
)


def fail(call: str, command: int | None, code: int) -> None:
    """From now on `call` (of `command`, its first argument) gives this errno in this process and its children."""

    def insn(op: int, k: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", op, yes, no, k)

    tests = [insn(_LD, 0), insn(_JEQ, NUMBERS[call], 0, 1 if command is None else 3)]
    if command is not None:
        tests += [insn(_LD, 16), insn(_JEQ, command, 0, 1)]
    code_bytes = b"".join((*tests, insn(_RET, _ERRNO | code), insn(_RET, _ALLOW)))
    program = struct.pack("HxxxxxxQ", len(code_bytes) // 8, address_of(code_bytes))
    syscall("seccomp", 1, 0, program)


def in_child(arguments: list[str], prepare: Callable[[], None]) -> tuple[int, str, str]:
    """Status (negative for a signal), stdout and stderr of the command line in a fork, after `prepare`."""
    from bpfseal.runtime import api, attach, cli, load, session, trace_command  # noqa: F401

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            status = 99
            try:
                for file, target in ((out, 1), (err, 2)):
                    os.dup2(file.fileno(), target)
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
                prepare()
                status = cli.main(arguments)
                sys.stdout.flush()
                sys.stderr.flush()
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 98
            finally:
                if status == 99:
                    import traceback

                    traceback.print_exc()
                    sys.stderr.flush()
                os._exit(status)
        _, raw = os.waitpid(pid, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return os.waitstatus_to_exitcode(raw), texts[0], texts[1]


def maps_named(mark: str) -> list[str]:
    found = []
    for number in bpf_info.ids("map"):
        try:
            fd = bpf_info.fd_by_id("map", number)
        except OSError:
            continue
        name = bpf_info.map_info(fd).name
        os.close(fd)
        if mark in name:
            found.append(name)
    return found


# What a trace can do without: to say which runs were skipped, maps by their next keys, types of programs.
OPTIONAL = {"OBJ_GET_INFO_BY_FD", "MAP_GET_NEXT_KEY", "BTF_LOAD"}
WORDS = {
    "MAP_CREATE": "the loader's metadata map was refused",
    "MAP_LOOKUP_ELEM": "while the trace ran",
    "MAP_LOOKUP_BATCH": "while the trace ran",
    "PROG_LOAD": "the kernel refused the",
    "PROG_TEST_RUN": "the loader could not be run",
    "RAW_TRACEPOINT_OPEN": "Unable to attach probe: tracepoint:syscalls:sys_enter_getppid",
    "LINK_CREATE": "Unable to attach probe: tracepoint:sched:sched_process_exec",
    "perf_event_open": "Unable to attach probe: tracepoint:sched:sched_process_exec",
}


@pytest.mark.parametrize(
    "code",
    [errno.ENOMEM, *(pytest.param(code, marks=pytest.mark.slow) for code in (errno.EPERM, errno.EIO))],
    ids=["ENOMEM", "EPERM", "EIO"],
)
@pytest.mark.parametrize("what", [*COMMANDS, "perf_event_open"])
def test_one_kind_of_call_fails(what: str, code: int, bpf_permitted: None) -> None:
    mark = f"f{os.urandom(3).hex()}"
    program = PROGRAM % (mark, mark)
    call, command = ("bpf", COMMANDS[what]) if what in COMMANDS else (what, None)
    status, _, err = in_child(["-q", "--signing=off", "-e", program], lambda: fail(call, command, code))
    assert "Traceback" not in err, err
    lines = [line for line in err.splitlines() if not line.startswith("HINT: ")]
    if what in OPTIONAL:
        assert (status, lines) == (0, []), err
    else:
        assert status == 1, err
        (line,) = lines
        assert line.startswith("ERROR: ")
        assert WORDS.get(what, "") in line
        assert code == errno.EPERM or os.strerror(code) in line or errno.errorcode[code] in line
    assert wait_until(lambda: not maps_named(mark), 20)  # the kernel frees them when nobody can be using them


def test_the_filter_does_what_it_says(bpf_permitted: None) -> None:
    """Without a failure the same program says hello."""
    status, out, err = in_child(["-q", "--signing=off", "-e", PROGRAM % ("a", "a")], lambda: None)
    assert (status, err) == (0, "")
    assert "hello" in out
