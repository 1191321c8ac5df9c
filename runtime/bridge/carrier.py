"""Carries one program load over: copy, translate, seal, load, hand over, explain.

Slow to import beside the rest of the bridge; imported when there is something to carry.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import re
import struct
import sys
import time
from collections.abc import Iterator
from typing import Final

from bpfseal.errors import BpfsealError
from bpfseal.runtime.bridge.listener import Call, Listener
from bpfseal.runtime.bridge.request import (
    LOG_TRUE_SIZE,
    Log,
    ProgLoad,
    SignedAlready,
    Unsupported,
    log_of,
    read,
    read_attr,
)
from bpfseal.runtime.bridge.tool import Tool, ToolError
from bpfseal.runtime.bridge.translate import Translator
from bpfseal.runtime.load import attempt, errno_name
from bpfseal.runtime.sealing import Sealer
from bpfseal.signer.bundle import Bundle, SealedBundle, encode
from bpfseal.signer.client import SealRefused, SignerError
from bpfseal.signer.loader_context import LoadResult, Stage

_MAX_SAID: Final = 1000
_LARGE: Final = 16 << 20
_ENFORCING: Final = 2  # of the modes off, audit, enforce

# What the analysis refuses and the verifier would too: libraries that try things out look at the errno, and take EPERM
# for "not permitted at all". Everything else the analysis or the policy refuses is EPERM.
_AS_VERIFIER: Final = {
    **dict.fromkeys(("map-unknown", "map-value", "callback"), errno.EACCES),
    **dict.fromkeys(
        (
            *("length", "opcode", "pseudo", "reserved", "register", "atomic", "ld_imm64", "jump", "call"),
            *("fallthrough", "unreachable", "recursion", "func-info", "line-info", "btf", "attach-type"),
        ),
        errno.EINVAL,
    ),
}


class Carrier:
    """`verbose`: a line for every program, not only for those that are refused. The sealer stays its owner's."""

    def __init__(self, sealer: Sealer, *, verbose: bool = False) -> None:
        self.verbose = verbose
        self._sealer = sealer
        self._translator = Translator()
        self._said: set[str] = set()
        self._noted = False

    def answer(self, listener: Listener, call: Call) -> None:
        """Answers one stopped call, whatever comes of it."""
        started = time.monotonic()
        try:
            tool = Tool(call.thread)
        except (ProcessLookupError, FileNotFoundError):
            return listener.fail(call, errno.EINTR)
        except OSError as error:
            self._say(f"[{call.thread}]", f"cannot look into the process: {error.strerror}; its load is refused")
            return listener.fail(call, errno.EPERM)
        with tool:
            if not listener.alive(call):
                return None
            held: list[int] = []
            try:
                self._take(listener, call, tool, held, started)
            except ToolError as error:
                self._explain(call, tool, error.log)
                self._tell(tool, f"a load failed with {errno_name(error.code)}", error.log)
                listener.fail(call, error.code)
            except _Refusal as error:
                self._explain(call, tool, f"bpfseal: {error.message}\n")
                if error.code == errno.EPERM:
                    self._say(tool.name(), f"refused program {error.program or 'without a name'}: {error.message}")
                else:
                    self._tell(tool, f"refused program {error.program or 'without a name'}", error.message)
                listener.fail(call, error.code)
            finally:
                for fd in held:
                    os.close(fd)

    def _take(self, listener: Listener, call: Call, tool: Tool, held: list[int], started: float) -> None:
        """One program: copy, translate, seal, load, hand over. Raises ToolError, _Refusal."""
        load: ProgLoad | None = None
        try:
            load, log = read(tool, call.attr, call.size)
            bundle = self._translator.bundle(tool, load, held, _origin(tool))
            if not listener.alive(call):
                return
            result = self._load(tool, call, bundle, log)
        except SignedAlready as error:
            if not _enforced():
                raise _Refusal(error.message, error.program, errno.EPERM) from None
            self._tell(tool, f"left program {error.program or 'without a name'} to the kernel", "it is signed already")
            listener.proceed(call)
            return
        except Unsupported as error:
            raise _Refusal(error.message, load.name if load else error.program, errno.EPERM) from None
        except SealRefused as error:
            reason = "; ".join(error.reasons[:8]) or error.message
            if error.rule == "helper" and (unknown := re.search(r"unknown helper (\d+)", reason)):
                raise ToolError(errno.EINVAL, f"invalid func unknown#{unknown[1]}\n") from None
            raise _Refusal(reason, load.name if load else "?", _AS_VERIFIER.get(error.rule, errno.EPERM)) from None
        except BpfsealError as error:
            hint = f" ({error.hint})" if error.hint else ""
            raise _Refusal(error.message + hint, load.name if load else "?", errno.EPERM) from None
        name = f"{load.name or 'unnamed'}, type {load.type}, {len(load.insns) // 8} instructions"
        took = f"{(time.monotonic() - started) * 1000:.1f} ms"
        if result.stage == Stage.DONE:
            held += result.map_fds + result.prog_fds
            listener.give(call, result.prog_fds[0])
            self._tell(tool, f"loaded program {name}, {len(bundle.maps)} maps", took)
            return
        if result.stage == Stage.MAP and result.errno == errno.EPERM:
            raise _Refusal("taking its maps by their ids needs CAP_SYS_ADMIN", load.name, errno.EPERM)
        if result.stage in (Stage.CHECK, Stage.MAP, Stage.BTF):
            reason = f"the loader failed ({result.stage.name.lower()}) with {errno_name(result.errno)}"
            raise _Refusal(reason, load.name, errno.EPERM if result.stage == Stage.CHECK else result.errno)
        self._tell(tool, f"the kernel refused program {name}: {errno_name(result.errno)}", took)
        listener.fail(call, result.errno)

    def _load(self, tool: Tool, call: Call, bundle: Bundle, log: Log) -> LoadResult:
        """Seals and loads; gives the verifier's words to the tool, and their number where its attributes have a place
        for that (`log_true_size`)."""
        sealed = self._seal(encode(bundle))
        if not log.level:
            return _attempt(bundle, sealed, None, 0)
        with _log_buffer(log.size or _LARGE) as buffer:
            result = _attempt(bundle, sealed, buffer, log.level)
            text = ctypes.string_at(ctypes.addressof(buffer))[: len(buffer) - 1] + b"\0"
        if log.buffer:
            tool.write(log.buffer, text)
        length = len(text)
        if result.errno == errno.ENOSPC:
            with _log_buffer(_LARGE) as buffer, _closing(_attempt(bundle, sealed, buffer, log.level)):
                length = len(ctypes.string_at(ctypes.addressof(buffer))) + 1
        if call.size >= LOG_TRUE_SIZE + 4:
            tool.write(call.attr + LOG_TRUE_SIZE, struct.pack("<I", length))
        return result

    def _seal(self, data: bytes) -> SealedBundle:
        """A command can outlive a helper: a lost one is looked for again, once for each program."""
        for last in (False, True):
            try:
                sealed = self._sealer.seal(data, quiet=self._noted)
                break
            except SealRefused:
                raise
            except SignerError:
                self._sealer.close()
                if last:
                    raise
        self._noted = True
        return sealed

    def _explain(self, call: Call, tool: Tool, text: str) -> None:
        """Something to read in the tool's log buffer, as it would find the verifier's words."""
        if not text:
            return
        with contextlib.suppress(ToolError):
            log = log_of(read_attr(tool, call.attr, call.size))
            if log.buffer:
                data = text.encode()[: log.size - 1] + b"\0"
                tool.write(log.buffer, data)

    def _tell(self, tool: Tool, what: str, detail: str) -> None:
        if self.verbose:
            sys.stderr.write(f"bpfseal: {tool.name()}: {what}{': ' if detail else ''}{detail.strip()}\n")

    def _say(self, who: str, what: str) -> None:
        """Once: tools try the same thing again and again."""
        if what not in self._said and len(self._said) < _MAX_SAID:
            self._said.add(what)
            sys.stderr.write(f"bpfseal: {who}: {what}\n")


class _Refusal(Exception):
    """Not loaded, for a reason of ours."""

    def __init__(self, message: str, program: str, code: int) -> None:
        super().__init__(message)
        self.message = message
        self.program = program
        self.code = code


def _enforced() -> bool:
    """Whether this kernel refuses what nobody signed whom it was told to trust. That it does is looked at again for
    every program: the kernel reads the program anew when it is let through."""
    from bpfseal.runtime.enforce_state import State

    try:
        state = State.open()
    except BpfsealError:
        return False
    if state is None:
        return False
    with state:
        return state.attached and state.config().active == _ENFORCING


def _origin(tool: Tool) -> str:
    """Stands where the source text of a script would, in the audit log."""
    return f"// program of {tool.name()}, started as: {tool.command_line()}"


def _attempt(
    bundle: Bundle, sealed: SealedBundle, buffer: ctypes.Array[ctypes.c_char] | None, level: int
) -> LoadResult:
    """EAGAIN is no verdict: the verifier met a signal of ours. A seal is good until its deadline."""
    for _ in range(10):
        result = attempt(bundle, sealed, log=buffer, log_level=level)
        if result.errno != errno.EAGAIN:
            break
    return result


@contextlib.contextmanager
def _closing(result: LoadResult) -> Iterator[None]:
    yield
    for fd in result.map_fds + result.prog_fds:
        os.close(fd)


@contextlib.contextmanager
def _log_buffer(size: int) -> Iterator[ctypes.Array[ctypes.c_char]]:
    """Zeroed memory that costs only what the verifier writes."""
    memory = mmap.mmap(-1, size)
    view = (ctypes.c_char * size).from_buffer(memory)
    try:
        yield view
    finally:
        del view
        with contextlib.suppress(BufferError):  # somebody still holds the view; the collector ends both
            memory.close()
