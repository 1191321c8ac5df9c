"""The client of the signing helper: the system's helper if one answers, else a private one for this process.

Cheap to import (msgspec only) and quick to return: `connect` starts a private helper without waiting for it, so that
it gets ready while the caller compiles.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TypeVar

import msgspec

from bpfseal.errors import BpfsealError
from bpfseal.signer import protocol
from bpfseal.signer.bundle import SealedBundle, SealRequest
from bpfseal.signer.limits import MAX_BUNDLE_BYTES
from bpfseal.signer.protocol import Reply, Request

SOCKET = "/run/bpfseal/signer.sock"
# A helper that neither answers nor works for this long is gone or wedged.
SILENCE_SECONDS = 2.0
# One that works on it (a huge bundle, a loaded machine) or is just starting is given this long.
WORK_SECONDS = 30.0
# The system helper closes connections that were idle for a minute; ask on a fresh one well before.
FRESH_SECONDS = 30.0

_R = TypeVar("_R", bound=Reply)


class SignerError(BpfsealError):
    """The helper cannot be reached or could not do it."""


class SealRefused(SignerError):
    """The helper will not sign: analysis or policy said no. `rule` names the rule, `reasons` all that was wrong."""

    def __init__(self, refusal: protocol.Refused) -> None:
        super().__init__(refusal.message, hint=refusal.hint or None)
        self.rule = refusal.rule
        self.reasons = refusal.reasons
        self.record = refusal.record


class SignerClient:
    """A connection to a helper. Not for use by several threads at once. A context manager; closing it ends a private
    helper."""

    def __init__(self, sock: socket.socket, *, mode: str, path: str = "", child: int = 0) -> None:
        self.mode = mode
        self._sock: socket.socket | None = sock
        self._path = path
        self._child = child
        self._helper = child or _peer(sock)[0]
        self._greeted = False
        self._why = ""
        self._used = time.monotonic()
        self._owner = os.getpid()

    @property
    def helper_pid(self) -> int:
        """Pid of the helper in this process's namespace, from the socket; what the helper calls itself may differ."""
        return self._helper

    # What it can be asked ----------------------------------------------------------------------------------------

    def hello(self) -> protocol.Welcome:
        """Waits until the helper is ready."""
        welcome = self._ask(protocol.Hello(), protocol.Welcome)
        self._greeted = True
        self._why = welcome.why
        return welcome

    def why_unverified(self) -> str:
        """Why signatures are not verified on this kernel; empty where they are."""
        self._ready()
        return self._why

    def seal(self, bundle: bytes, *, lifetime: int = 0) -> SealedBundle:
        """A loader for the canonical bytes of a Bundle. Raises SealRefused, SignerError."""
        return self.seal_reply(bundle, lifetime=lifetime).sealed

    def seal_reply(self, bundle: bytes, *, lifetime: int = 0) -> protocol.SealReply:
        """As `seal`, with the policy rule that allowed it and the policy's notes."""
        if len(bundle) > MAX_BUNDLE_BYTES:
            raise SignerError(f"a bundle of {len(bundle)} bytes is over the limit of {MAX_BUNDLE_BYTES}")
        self._ready()
        request = protocol.Seal(request=SealRequest(bundle=bundle, lifetime=lifetime))
        return self._ask(request, protocol.SealReply)

    def seal_file(self, bundle: bytes, header: bytes) -> protocol.FileSealed:
        """Seals for a file (`signer.sealed_file`); only helpers of `start_private(ahead=…)` give them. Raises
        SealRefused, SignerError."""
        if len(bundle) + len(header) > MAX_BUNDLE_BYTES:
            raise SignerError(f"a bundle of {len(bundle)} bytes is over the limit of {MAX_BUNDLE_BYTES}")
        self._ready()
        request = protocol.Seal(request=SealRequest(bundle=bundle, file=header))
        return self._ask(request, protocol.FileSealed)

    def check(self, bundle: bytes, *, user: tuple[int, int, tuple[int, ...]] | None = None) -> protocol.Verdict:
        """Would it be sealed (for `user`, a uid, gid and groups, which only administrators may ask)? Signs nothing."""
        self._ready()
        uid, gid, groups = user or (-1, -1, ())
        request = protocol.Check(request=SealRequest(bundle=bundle), uid=uid, gid=gid, groups=groups)
        return self._ask(request, protocol.Verdict)

    def status(self) -> protocol.StatusReply:
        self._ready()
        return self._ask(protocol.Status(), protocol.StatusReply)

    def certificate(self) -> protocol.CertificateReply:
        self._ready()
        return self._ask(protocol.Certificate(), protocol.CertificateReply)

    def keys(self) -> protocol.KeyList:
        self._ready()
        return self._ask(protocol.ListKeys(), protocol.KeyList)

    def rotate(self) -> protocol.Done:
        self._ready()
        return self._ask(protocol.Rotate(), protocol.Done)

    def revoke(self) -> protocol.Done:
        self._ready()
        return self._ask(protocol.Revoke(), protocol.Done)

    def keep(self, decisions: Sequence[protocol.LoadDecision]) -> None:
        """Put what enforcement decided into the audit log; for administrators. Raises SignerError."""
        self._ready()
        for first in range(0, len(decisions), 256):
            self._ask(protocol.Decisions(decisions=tuple(decisions[first : first + 256])), protocol.Done)

    # The wire ----------------------------------------------------------------------------------------------------

    def _ready(self) -> None:
        if self._path and time.monotonic() - self._used > FRESH_SECONDS:
            self.close()
            self._sock = _dial(self._path)
            self._helper = _peer(self._sock)[0]
            self._greeted = False
        if not self._greeted:
            self.hello()

    def _ask(self, request: Request, kind: type[_R]) -> _R:
        reply = self._exchange(request)
        if isinstance(reply, kind):
            return reply
        if isinstance(reply, protocol.Refused):
            raise SealRefused(reply)
        if isinstance(reply, protocol.Failed):
            raise SignerError(reply.message, hint=reply.hint or None)
        raise SignerError(f"the signing helper answered out of turn ({type(reply).__name__})")

    def _exchange(self, request: Request) -> Reply:
        sock = self._sock
        if sock is None:
            raise SignerError("the connection to the signing helper is closed")
        if self._owner != os.getpid():
            raise SignerError("a signing helper cannot be shared with a forked process", hint="connect again there")
        patience = _Patience(self._helper, SILENCE_SECONDS if self._greeted or self._path else WORK_SECONDS)
        try:
            self._send(sock, memoryview(protocol.frame(request)), patience)
            length, version, _ = protocol.HEADER.unpack(self._receive(sock, protocol.HEADER.size, patience))
            if version != protocol.VERSION or length > protocol.REPLY_LIMIT:
                raise SignerError("the signing helper speaks another protocol")
            body = self._receive(sock, length, patience)
        except TimeoutError:
            self._end(patient=False)
            raise SignerError("the signing helper does not answer") from None
        except OSError as error:
            raise self._lost(error.strerror) from None
        except EOFError:
            raise self._lost("it closed the connection") from None
        self._used = time.monotonic()
        try:
            return protocol.decode_reply(body)
        except protocol.ProtocolError as error:
            self.close()
            raise SignerError(f"the signing helper sent nonsense: {error}") from None

    @staticmethod
    def _send(sock: socket.socket, data: memoryview, patience: _Patience) -> None:
        sock.settimeout(0.25)
        while data:
            try:
                data = data[sock.send(data) :]
                patience.renew()
            except TimeoutError:
                patience.check()
            except BrokenPipeError:
                return  # it hung up on us, and may have said why

    @staticmethod
    def _receive(sock: socket.socket, size: int, patience: _Patience) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                piece = sock.recv(min(size - len(data), 1 << 20))
            except TimeoutError:
                patience.check()
                continue
            if not piece:
                raise EOFError
            data += piece
            patience.renew()
        return bytes(data)

    def _lost(self, why: str | None) -> SignerError:
        told = ""
        if self.mode == "private" and not self._greeted and self._sock is not None:
            told = "the private signing helper did not start"
        self.close()
        return SignerError(
            told or f"lost the signing helper ({why})", hint="its own message is above" if told else None
        )

    def close(self) -> None:
        """Closes the connection; a private helper then writes its last audit record and ends. One that was never asked
        anything has none to write, and is not waited for."""
        self._end(patient=self._greeted)

    def _end(self, *, patient: bool) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._child and self._owner == os.getpid():
            child, self._child = self._child, 0
            _reap(child, 1000 if patient else 0)

    def __enter__(self) -> SignerClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Patience:
    """How long to wait for process `pid`: while it does something, and `silence` seconds while it does not."""

    def __init__(self, pid: int, silence: float) -> None:
        self._pid = pid
        self._silence = silence
        self._until = time.monotonic() + WORK_SECONDS
        self.renew()

    def renew(self) -> None:
        self._quiet = time.monotonic()
        self._work: tuple[bytes, int] | None = None  # looked at when it is late, since most answers are not

    def check(self) -> None:
        """Raises TimeoutError when it is over."""
        now = time.monotonic()
        work = _work(self._pid)
        if self._work is None and work[0] not in (b"R", b"D"):
            self._work = work
        elif work != self._work or work[0] in (b"R", b"D"):
            self._work, self._quiet = work, now
        if now > self._until or now - self._quiet > self._silence - 0.25:
            raise TimeoutError


def _work(pid: int) -> tuple[bytes, int]:
    """State letter and processor time of a process: proc(5), /proc/PID/stat. Empty if that cannot be told."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return fields[0], int(fields[11]) + int(fields[12])
    except (OSError, ValueError, IndexError):
        return b"", 0


def _reap(child: int, milliseconds: int) -> None:
    """Wait that long for a private helper to end by itself, then end it."""
    try:
        pidfd = os.pidfd_open(child)
    except OSError:
        pidfd = -1
    try:
        if pidfd >= 0:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(milliseconds):
                os.kill(child, 9)
        os.waitpid(child, 0)
    except (ChildProcessError, ProcessLookupError):
        pass
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def connect(
    *, policy: str | None = None, unsafe: bool = False, path: str | None = None, audit: str | None = None
) -> SignerClient:
    """The system's helper if it answers at `path` (BPFSEAL_SOCKET, default /run/bpfseal/signer.sock), else a private
    one. With a `policy` file always a private one. `unsafe` widens the built-in policy of a private helper; a policy
    file or the system's policy takes no orders from a client.

    Raises SignerError when the system's socket is not to be trusted, rather than going around it.
    """
    if policy is None:
        where = path or os.environ.get("BPFSEAL_SOCKET") or SOCKET
        if os.path.lexists(where):
            try:
                return SignerClient(_dial(where), mode="system", path=where)
            except (ConnectionRefusedError, FileNotFoundError, PermissionError):
                if path:
                    raise SignerError(f"no signing helper answers at {where}") from None
        elif path:
            raise SignerError(f"no signing helper answers at {where}")
    return start_private(policy or "", unsafe=unsafe, audit=audit or "")


def _peer(sock: socket.socket) -> tuple[int, int]:
    """pid and uid at the other end."""
    pid, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def _dial(path: str) -> socket.socket:
    """Connect, and make sure that root or the socket's owner is at the other end."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(SILENCE_SECONDS)
        sock.connect(path)
        _, uid = _peer(sock)
        owner = os.lstat(path).st_uid
        folder = os.stat(os.path.dirname(path) or ".")
    except OSError as error:
        sock.close()
        if isinstance(error, ConnectionRefusedError | FileNotFoundError | PermissionError):
            raise
        raise SignerError(f"signing helper at {path}: {error.strerror}") from None
    if uid not in (0, owner) or folder.st_uid not in (0, owner) or folder.st_mode & 0o002:
        sock.close()
        raise SignerError(
            f"{path} is not to be trusted: it belongs to uid {owner}, its directory to uid {folder.st_uid}, "
            f"and uid {uid} answers"
        )
    return sock


_START = (
    "import gc, sys; gc.disable(); sys.path += sys.argv[1].split(chr(10)); "
    "from bpfseal.signer.start import private; private(sys.argv[2:])"
)


def default_audit_path() -> str:
    """Where private helpers keep their log: BPFSEAL_AUDIT, else /var/log/bpfseal-private for root (the system's helper
    owns /var/log/bpfseal), else the user's state directory."""
    named = os.environ.get("BPFSEAL_AUDIT", "")
    if named:
        return os.path.abspath(named)
    if os.geteuid() == 0:
        return "/var/log/bpfseal-private/audit.jsonl"
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):
        state = os.path.expanduser("~/.local/state")
    return os.path.join(state, "bpfseal", "audit.jsonl")


def start_private(
    policy: str = "", *, unsafe: bool = False, audit: str = "", ahead: Sequence[str] = ()
) -> SignerClient:
    """Start a helper that serves this process only, over a socket pair: no path, no set-up, no configuration.
    `ahead`: settings of a helper that seals files with a key that is given (`signer.ahead`).

    It runs isolated: no environment, no site directories, nothing but the standard library and the folders that
    bpfseal, msgspec and cryptography were installed in.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Before anything is sent, or early messages would come without credentials.
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        # The kernel's death signal fires when the *thread* that started a process ends, so only the main one asks.
        main_thread = threading.current_thread() is threading.main_thread()
        settings = [
            f"parent={os.getpid()}",
            f"policy={os.path.abspath(policy) if policy else ''}",
            f"unsafe={int(unsafe)}",
            f"audit={os.path.abspath(audit) if audit else default_audit_path()}",
            f"death_signal={int(main_thread)}",
            *ahead,
        ]
        child = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", "-c", _START, "\n".join(import_folders()), *settings],
            {name: os.environ[name] for name in ("SOFTHSM2_CONF",) if ahead and name in os.environ},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 3),
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            ],
            setpgroup=0,  # Ctrl-C is for the client; the helper ends with it
            setsigmask=[],
        )
    except OSError as error:
        ours.close()
        what = f" ({error.filename})" if error.filename else ""
        raise SignerError(f"cannot start a private signing helper{what}: {error.strerror}") from None
    finally:
        theirs.close()
    return SignerClient(ours, mode="private", child=child)


def import_folders() -> list[str]:
    """Where the helper may import from, beside the standard library."""
    import bpfseal

    folders = [
        os.path.dirname(os.path.dirname(os.path.abspath(module.__file__ or ""))) for module in (bpfseal, msgspec)
    ]
    for folder in sys.path:
        if os.path.isabs(folder) and os.path.isdir(os.path.join(folder, "cryptography", "hazmat")):
            folders.append(folder)
            break
    return list(dict.fromkeys(folders))
