"""From a SealedBundle to descriptors of maps and programs.

The sequence (kernel tree, Documentation/bpf/signing.rst; the loader itself is described in `signer.loader`):
metadata map, exclusive to the loader → contents → freeze → (ABI 1) ask for its hash → load the loader with the
signature → run it once → read the descriptors from its context → close loader and map.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import msgspec

from bpfseal.errors import BpfsealError
from bpfseal.runtime import bpf
from bpfseal.signer.bundle import Bundle, SealedBundle
from bpfseal.signer.loader_context import (
    BPF_F_SLEEPABLE,
    PROG_TYPE_SYSCALL,
    LoadResult,
    Stage,
    make_context,
    parse_context,
)

# What the verifier says no with. 524 is ENOTSUPP, a kernel-internal number that gets out.
_VERDICTS = frozenset((errno.EACCES, errno.EINVAL, errno.E2BIG, errno.EFAULT, errno.ENOENT, errno.ESRCH, 524))
_LOG_BYTES = 16 << 20
_SPARE_FDS = 64


class VerifierRejected(BpfsealError):
    """The verifier refused a program. `program` is its name, `code` the errno, `log` what the verifier said."""

    def __init__(self, program: str, code: int, log: str) -> None:
        self.program = program
        self.code = code
        self.log = log
        reason = _last_words(log) or os.strerror(code)
        super().__init__(
            f"the kernel's verifier refused program {program}: {reason} [{errno_name(code)}]",
            hint="-v shows the verifier's log" if log else None,
        )


class LoadRefused(BpfsealError):
    """The kernel or the loader refused for another reason. `code` is the errno, `stage` where."""

    def __init__(self, message: str, code: int, stage: Stage, *, hint: str | None = None) -> None:
        super().__init__(f"{message} [{errno_name(code)}]", hint=hint)
        self.code = code
        self.stage = stage


class Loaded(msgspec.Struct):
    """Descriptors in the order of `Bundle.maps` and `Bundle.programs`, and of the links that the loader has made, by
    the index of the program; `close()` gives them back, links first. Who takes a link out of `links` closes it."""

    map_fds: list[int]
    prog_fds: list[int]
    links: dict[int, int] = msgspec.field(default_factory=dict)

    def close(self) -> None:
        while self.links:
            os.close(self.links.popitem()[1])
        for fds in (self.prog_fds, self.map_fds):
            while fds:
                os.close(fds.pop())

    def __enter__(self) -> Loaded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def seal_locally(bundle: Bundle) -> SealedBundle:
    """A loader without signature, helper or record: for `--signing=off`."""
    from bpfseal.signer.loader import Terms, emit

    loader = emit(bundle, Terms(abi=0))
    return SealedBundle(
        loader=loader.insns,
        metadata=loader.metadata,
        signature=b"",
        abi=0,
        keyring=0,
        certificate=b"",
        record=0,
        ctx_size=loader.ctx_size,
        deadline_ns=0,
    )


def load(bundle: Bundle, sealed: SealedBundle, *, log_level: int = 0) -> Loaded:
    """Load what was sealed. Nothing is left in the kernel on failure.

    A rejected program is tried a second time with the verifier's log on (at `log_level`, at least 1), since a log
    slows every load. Raises VerifierRejected, LoadRefused.
    """
    _room_for(len(bundle.maps) + len(bundle.programs) + len(_linked(bundle)))
    for _ in range(10):
        result = attempt(bundle, sealed)
        if result.errno != errno.EAGAIN:  # EAGAIN: the verifier saw a signal pending
            break
    if result.stage == Stage.DONE:
        return _loaded(bundle, result)
    if result.stage == Stage.PROGRAM and result.errno in _VERDICTS:
        with _log_buffer() as buffer:
            again = attempt(bundle, sealed, log=buffer, log_level=max(log_level, 1))
            if again.stage == Stage.DONE:
                return _loaded(bundle, again)
            text = ctypes.string_at(ctypes.addressof(buffer)).decode(errors="replace")
        # An empty log means that the attributes were refused before the verifier had a look.
        if again.stage == Stage.PROGRAM and text:
            code = result.errno if again.errno == errno.ENOSPC else again.errno  # ENOSPC: the log was cut
            raise VerifierRejected(bundle.programs[again.index].name, code, text)
        result = again
    raise _refused(bundle, sealed, result)


def _linked(bundle: Bundle) -> list[int]:
    return [index for index, program in enumerate(bundle.programs) if program.linked]


def _loaded(bundle: Bundle, result: LoadResult) -> Loaded:
    links = dict(zip(_linked(bundle), result.link_fds, strict=True))
    return Loaded(list(result.map_fds), list(result.prog_fds), links)


def attempt(
    bundle: Bundle, sealed: SealedBundle, *, log: ctypes.Array[ctypes.c_char] | None = None, log_level: int = 0
) -> LoadResult:
    """The sequence once, for callers that judge the result themselves; `load` is for everybody else. A fresh metadata
    map each time: one is good for one run. The verifier's log needs both buffer and level. Raises LoadRefused if the
    loader does not get to run."""
    with _metadata_map(sealed) as meta:
        try:
            loader = _loader(sealed, meta)
        except OSError as error:
            raise _loader_refused(sealed, error) from None
        address = ctypes.addressof(log) if log is not None else 0
        context = make_context(sealed.ctx_size, address, len(log) if log is not None else 0, log_level)
        try:
            returned, context = bpf.prog_run(loader, context)
        except OSError as error:
            raise LoadRefused("the loader could not be run", error.errno or 0, Stage.CHECK) from None
        finally:
            os.close(loader)
    result = parse_context(context, len(bundle.maps), len(bundle.programs), len(_linked(bundle)))
    if result.stage == Stage.CHECK:  # refused by its own terms: only the return value says why
        return LoadResult((), (), Stage.CHECK, 0, -returned)
    return result


def _loader(sealed: SealedBundle, meta: int) -> int:
    return bpf.prog_load(
        PROG_TYPE_SYSCALL,
        sealed.loader,
        flags=BPF_F_SLEEPABLE,
        name=b"bpfseal_loader",
        fds=(meta,),
        bind_fds=sealed.abi == 2,
        signature=sealed.signature,
        keyring=sealed.keyring,
    )


def refusal_of(sealed: SealedBundle) -> LoadRefused | None:
    """What the kernel has against the loader, None for nothing; it is loaded and not run."""
    try:
        with _metadata_map(sealed) as meta:
            os.close(_loader(sealed, meta))
    except LoadRefused as error:
        return error
    except OSError as error:
        return _loader_refused(sealed, error)
    return None


@contextmanager
def _metadata_map(sealed: SealedBundle) -> Iterator[int]:
    """The frozen metadata map; exclusive to the loader where the kernel verifies (ABI 0: such a map may be unknown)."""
    import hashlib

    exclusive = hashlib.sha256(sealed.loader).digest() if sealed.abi else b""
    fd = -1
    try:
        fd = bpf.map_create(bpf.MAP_ARRAY, 4, len(sealed.metadata), 1, name=b"bpfseal_meta", excl_prog_hash=exclusive)
        bpf.map_update(fd, bytes(4), sealed.metadata)
        bpf.map_freeze(fd)
        if sealed.abi == 1:
            bpf.map_hash(fd)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        code = error.errno or 0
        raise LoadRefused("the loader's metadata map was refused", code, Stage.CHECK, hint=_hint(code)) from None
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _log_buffer() -> Iterator[ctypes.Array[ctypes.c_char]]:
    """Zeroed memory that costs only what the verifier writes."""
    memory = mmap.mmap(-1, _LOG_BYTES)
    buffer = (ctypes.c_char * _LOG_BYTES).from_buffer(memory)
    try:
        yield buffer
    finally:
        del buffer
        try:
            memory.close()
        except BufferError:  # an exception's traceback still holds the view; the collector ends both
            pass


def _room_for(objects: int) -> None:
    """Raise the soft limit of open files where the bundle needs more; EMFILE is reported when even that is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        used = len(os.listdir("/proc/self/fd"))
    except OSError:  # not even one left to look with
        used = soft
    wanted = objects + _SPARE_FDS + used
    if soft != resource.RLIM_INFINITY and soft < wanted:
        target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))


# Errors


def errno_name(code: int) -> str:
    """ "EACCES 13"."""
    names = {524: "ENOTSUPP", errno.EOPNOTSUPP: "EOPNOTSUPP"}  # Python says ENOTSUP for the latter
    return f"{names.get(code) or errno.errorcode.get(code, 'errno')} {code}"


def _hint(code: int) -> str | None:
    if code == errno.EPERM:
        if os.geteuid() != 0:
            return "run as root, or with CAP_BPF and CAP_PERFMON"
        return "an LSM or lockdown forbids it: `bpfseal doctor` says what this kernel permits"
    if code == errno.EMFILE:
        return "raise the limit of open files (ulimit -n)"
    return None


_LOADER_MESSAGES = {
    errno.EKEYREJECTED: (
        "the kernel refused the signature: it is not one of this loader and metadata",
        "`bpfseal doctor` shows the signing ABI of this kernel",
    ),
    errno.ENOKEY: ("the signing key is not in the keyring the bundle was sealed for", "seal it again"),
    errno.EKEYEXPIRED: ("the key that sealed this bundle has expired", "seal it again"),
    errno.EKEYREVOKED: ("the key that sealed this bundle was revoked", "seal it again"),
    errno.EBADMSG: ("the kernel cannot read the signature", None),
    errno.ENOPKG: ("this kernel lacks the algorithm of the signature", None),
    errno.EOPNOTSUPP: ("this kernel was built without verification of BPF signatures", "use --signing=auto"),
}


def _loader_refused(sealed: SealedBundle, error: OSError) -> LoadRefused:
    code = error.errno or 0
    if sealed.signature:
        if code in _LOADER_MESSAGES:
            message, hint = _LOADER_MESSAGES[code]
            return LoadRefused(message, code, Stage.CHECK, hint=hint)
        if code == errno.EINVAL:
            return LoadRefused(
                "the keyring the bundle was sealed for is gone", code, Stage.CHECK, hint="the helper ended: seal again"
            )
    elif code == errno.EPERM and os.geteuid() == 0:
        return LoadRefused(
            "the kernel refused the unsigned loader",
            code,
            Stage.CHECK,
            hint="does it require signatures (`bpfseal enforce status`)? Leave --signing at auto",
        )
    return LoadRefused("the kernel refused the loader", code, Stage.CHECK, hint=_hint(code))


_CHECK_MESSAGES = {
    errno.EINVAL: "the loader refused: its metadata is not what was sealed",
    errno.EKEYEXPIRED: "the seal of this bundle has expired",
    errno.EPERM: "this bundle was sealed for another user",
    errno.ESRCH: "this bundle was sealed for another process",
    errno.EALREADY: "this bundle was loaded already",
}


def _refused(bundle: Bundle, sealed: SealedBundle, result: LoadResult) -> BpfsealError:
    code, stage = result.errno, result.stage
    if stage == Stage.LINK:
        from bpfseal.runtime.attach import explain

        return explain(bundle.programs[_linked(bundle)[result.index]].attach[0], OSError(code, os.strerror(code)))
    hint = _hint(code)
    if stage == Stage.CHECK:
        message = _CHECK_MESSAGES.get(code, "the loader refused")
        return LoadRefused(message, code, stage, hint="seal it again" if code in _CHECK_MESSAGES else None)
    if stage == Stage.BTF:
        return LoadRefused("the kernel refused the bundle's type information", code, stage, hint=hint)
    if stage == Stage.PROGRAM:
        program = bundle.programs[result.index]
        what = f" on {program.attach_btf}" if program.attach_btf else ""
        return LoadRefused(f"the kernel refused program {program.name}{what}", code, stage, hint=hint)
    if stage == Stage.TARGET:
        program = bundle.programs[result.index]
        return LoadRefused(f"no function {program.attach_btf} in module {program.attach_module}", code, stage)
    kinds = {Stage.MAP: bundle.maps, Stage.INITIAL: [m for m in bundle.maps if m.initial]}
    spec = kinds.get(stage, [m for m in bundle.maps if m.frozen])[result.index]
    size = f" ({spec.max_entries} entries of {spec.key_size}+{spec.value_size} bytes)"
    what = {Stage.MAP: "refused map", Stage.INITIAL: "refused the contents of map", Stage.FREEZE: "cannot freeze map"}[
        stage
    ]
    if code in (errno.ENOMEM, errno.E2BIG) and stage == Stage.MAP:
        hint = "make it smaller: fewer entries (max_map_keys) or a smaller ring (perf_rb_pages)"
    return LoadRefused(f"the kernel {what} {spec.name}{size}", code, stage, hint=hint)


_NOISE = ("processed ", "verification time", "stack depth", "mark_precise", "from ", "func#", "; ")


def _last_words(log: str) -> str:
    """The verifier's reason: the last line that is neither statistics nor a state dump."""
    for line in reversed(log.strip().splitlines()):
        text = line.strip()
        if text and not text.startswith(_NOISE) and not text[0].isdigit():
            return text
    return ""
