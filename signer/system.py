"""The system's helper: its socket, its account, its supervisor."""

from __future__ import annotations

import os
import pwd
import socket
import stat
import time

from msgspec import Struct

from bpfseal.errors import BpfsealError
from bpfseal.signer import harden
from bpfseal.signer.peer import want_credentials

ACCOUNT = "bpfseal"
BACKLOG = 512


class Settings(Struct, frozen=True):
    """Options of `bpfseal signer run`. `audit` and `anchor` are files, `root` "", a PEM file or a pkcs11: URI;
    `token_dirs` is what a token's library goes on reading; `executables`: look at those of peers."""

    socket: str
    policy: str
    audit: str
    anchor: str = ""
    root: str = ""
    life: int = 600
    user: str = ""
    admins: tuple[int, ...] = ()
    token_dirs: tuple[str, ...] = ()
    executables: bool = False


class SocketError(BpfsealError):
    """The socket cannot be put where it was asked for."""


def listen(path: str) -> socket.socket:
    """A listening socket at `path`, mode 0660, in a directory that nobody else can change.

    The directory is opened once, without following a link, and the socket bound relative to that, so that what was
    checked is what is used. Raises SocketError.
    """
    path = os.path.abspath(path)
    folder, name = os.path.split(path)
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SocketError(
            f"socket directory {folder}: {error.strerror}", hint="it must exist and not be a link"
        ) from None
    try:
        status = os.fstat(fd)
        if status.st_uid not in (0, os.geteuid()):
            raise SocketError(f"socket directory {folder} belongs to uid {status.st_uid}")
        if status.st_mode & 0o022:
            raise SocketError(f"socket directory {folder} can be written by others", hint=f"chmod 0750 {folder}")
        _clear(fd, name, path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        want_credentials(sock)
        before = os.umask(0o117)
        try:
            sock.bind(f"/proc/self/fd/{fd}/{name}")
        except OSError as error:
            sock.close()
            raise SocketError(f"socket {path}: {error.strerror}") from None
        finally:
            os.umask(before)
        sock.listen(BACKLOG)
        return sock
    finally:
        os.close(fd)


def _clear(folder: int, name: str, path: str) -> None:
    """Remove what a helper that is gone left behind; refuse everything else."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise SocketError(f"{path} is in the way and not a socket")
    if status.st_uid not in (0, os.geteuid()):
        raise SocketError(f"{path} is in the way and belongs to uid {status.st_uid}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(f"/proc/self/fd/{folder}/{name}")
        except (ConnectionRefusedError, FileNotFoundError):
            pass
        except OSError as error:
            raise SocketError(f"{path} is in the way: {error.strerror}") from None
        else:
            raise SocketError(f"a helper is already answering at {path}")
    os.unlink(name, dir_fd=folder)


def account(user: str) -> tuple[int | None, int | None]:
    """uid and gid to run as: none when this is not root, else `user`, the account "bpfseal", or a scratch uid."""
    if os.geteuid() != 0:
        return None, None
    for name in (user, ACCOUNT):
        if not name:
            continue
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            if name == user:
                raise BpfsealError(f"there is no user {user}") from None
            continue
        if entry.pw_uid == 0:
            raise BpfsealError("the helper does not run as root", hint="give --user an account of its own")
        return entry.pw_uid, entry.pw_gid
    scratch = harden.scratch_uid()
    return scratch, scratch


class Supervisor:
    """systemd's notification socket, opened while sockets may still be made. Silent when there is none."""

    def __init__(self) -> None:
        self._sock: socket.socket | None = None
        self._every = int(os.environ.get("WATCHDOG_USEC", "0") or 0) / 2_000_000
        self._last = 0.0
        where = os.environ.get("NOTIFY_SOCKET", "")
        if where[:1] in ("/", "@"):
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            try:
                self._sock.connect("\0" + where[1:] if where[0] == "@" else where)
            except OSError:
                self._sock.close()
                self._sock = None

    def tell(self, text: str) -> None:
        if self._sock is not None:
            try:
                self._sock.send(text.encode())
            except OSError:
                pass

    def heartbeat(self) -> None:
        now = time.monotonic()
        if self._every and now - self._last >= self._every:
            self._last = now
            self.tell("WATCHDOG=1")
