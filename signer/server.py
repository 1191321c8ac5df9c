"""The helper's event loop: sockets, frames, limits and deadlines. One process, one thread, one request at a time.

A connection is either waiting for a request (idle for at most a minute), in the middle of one (which has to be complete
within two seconds), waiting for its turn, or being written to (two seconds again). It may not send while it waits:
a second message before the reply ends the connection. So one connection costs at most one message's memory, one uid
at most its share of connections, and a slow or silent client costs nobody else anything.
"""

from __future__ import annotations

import errno
import os
import resource
import selectors
import signal
import socket
import time
from collections.abc import Callable

from msgspec import Struct, field

from bpfseal.signer import protocol
from bpfseal.signer.executable import Executables
from bpfseal.signer.identity import Identity
from bpfseal.signer.peer import Peer, PeerError, receive
from bpfseal.signer.protocol import ProtocolError, Reply, Request
from bpfseal.signer.service import Service

READ_SECONDS = 2.0
WRITE_SECONDS = 2.0
IDLE_SECONDS = 60.0
BATCH = 32  # at most; the service takes fewer when they take long
CHUNK = 256 << 10
CONNECTIONS = 2048
CONNECTIONS_PER_USER = 256
# Message bytes of one uid that are buffered at the same time, beyond one small message per connection.
LARGE_PER_USER = 2 * protocol.LIMITS[protocol.LARGE]
# Kept free for the log, policy, /proc and pidfds.
SPARE_DESCRIPTORS = 64


class Connection(Struct, eq=False):
    """One client. `need` is the body length once the header is there; `until` the current deadline."""

    sock: socket.socket
    peer: Peer
    until: float
    keep: bool
    inbox: bytearray = field(default_factory=bytearray)
    need: int = -1
    pidfd: int = -1
    outbox: memoryview | None = None
    waiting: bool = False
    watched: int = 0
    closing: bool = False

    def drop_pidfd(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Server:
    """Serves a listening socket, or one connected one (a private helper, which ends with it)."""

    def __init__(
        self,
        service: Service,
        *,
        listener: socket.socket | None = None,
        single: socket.socket | None = None,
        heartbeat: Callable[[], None] | None = None,
        executables: Executables | None = None,
    ) -> None:
        self._service = service
        self._selector = selectors.DefaultSelector()
        self._listener = listener
        self._heartbeat = heartbeat
        self._executables = executables
        self._connections: set[Connection] = set()
        self._of_user: dict[int, int] = {}
        self._queue: list[tuple[Connection, Request, Identity]] = []
        self._running = True
        self._paused = False
        self._swept = 0.0
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Every connection may hold a pidfd beside its socket.
        self._limit = max(1, min(CONNECTIONS, (soft - SPARE_DESCRIPTORS) // 2))
        if listener is not None:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ, None)
        if single is not None:
            self._adopt(single, keep=True)
        self._wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._synced = service.synced
        if self._synced >= 0:
            self._selector.register(self._synced, selectors.EVENT_READ, None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: object) -> None:
        self._running = False

    def watch_end(self, pidfd: int) -> None:
        """End when the process behind `pidfd` does."""
        self._selector.register(pidfd, selectors.EVENT_READ, self._stop)

    # The loop ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until told to stop, or until the one connection is gone."""
        while self._running:
            self.turn(0 if self._queue and self._service.room else 0.5)
            if self._listener is None and not self._connections:
                break

    def turn(self, timeout: float) -> None:
        """One round: read what is there, answer a batch, look at the clock."""
        for key, mask in self._selector.select(timeout):
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.data, Connection):
                connection = key.data
                if connection in self._connections:
                    if mask & selectors.EVENT_WRITE:
                        self._flush(connection)
                    elif connection.waiting:
                        self._watch(connection, 0)  # what it sends before it has its reply can wait
                    elif mask & selectors.EVENT_READ:
                        self._read(connection)
            elif key.fileobj == self._synced:
                self._service.collect()
            elif key.fileobj == self._wake_read:
                os.read(self._wake_read, 512)
            else:
                self._running = False
        if self._queue and self._service.room:
            self._answer()
        now = time.monotonic()
        if now - self._swept >= 0.5:
            self._swept = now
            self._sweep(now)
            self._service.tick()
            if self._heartbeat is not None:
                self._heartbeat()

    def _sweep(self, now: float) -> None:
        for connection in [c for c in self._connections if not c.waiting and now > c.until]:
            if connection.keep and not connection.inbox and connection.outbox is None:
                continue
            if connection.inbox:
                self._reject(connection, f"message not complete after {READ_SECONDS:g} s")
            else:
                self._close(connection)
        if self._paused and self._listener is not None and len(self._connections) < self._limit:
            self._paused = False
            self._selector.register(self._listener, selectors.EVENT_READ, None)

    # Connections -------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(64):
            if len(self._connections) >= self._limit:
                self._pause()
                return
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._pause()
                    return
                raise
            self._adopt(sock, keep=False)

    def _pause(self) -> None:
        """Let connections wait in the kernel's queue until some of ours are gone (looked at in every sweep)."""
        if self._listener is not None and not self._paused:
            self._paused = True
            self._selector.unregister(self._listener)

    def _adopt(self, sock: socket.socket, *, keep: bool) -> None:
        try:
            sock.setblocking(False)
            peer = Peer(sock)
        except OSError:
            sock.close()
            return
        connection = Connection(sock, peer, time.monotonic() + IDLE_SECONDS, keep)
        self._connections.add(connection)
        self._of_user[peer.uid] = self._of_user.get(peer.uid, 0) + 1
        self._watch(connection, selectors.EVENT_READ)
        if self._of_user[peer.uid] > CONNECTIONS_PER_USER:
            self._reject(connection, f"more than {CONNECTIONS_PER_USER} connections of one user")

    def _watch(self, connection: Connection, events: int) -> None:
        """What to wait for on a connection; 0 at its end."""
        if events == connection.watched:
            return
        if not events:
            self._selector.unregister(connection.sock)
        elif not connection.watched:
            self._selector.register(connection.sock, events, connection)
        else:
            self._selector.modify(connection.sock, events, connection)
        connection.watched = events

    def _close(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        uid = connection.peer.uid
        self._of_user[uid] -= 1
        if not self._of_user[uid]:
            del self._of_user[uid]
        self._watch(connection, 0)
        connection.sock.close()
        connection.drop_pidfd()

    def _read(self, connection: Connection) -> None:
        try:
            piece = receive(connection.sock, CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._close(connection)
            return
        if not piece.data:
            piece.close()
            self._close(connection)
            return
        try:
            connection.peer.accept(piece)
        except PeerError as error:
            fields = {"uid": piece.uid, "pid": piece.pid, "connected_uid": connection.peer.uid}
            fields["connected_pid"] = connection.peer.pid
            piece.close()
            self._service.note("foreign-message", connection.peer.uid, {**fields, "reasons": [error.message]})
            self._reject(connection, error.message)
            return
        connection.drop_pidfd()
        connection.pidfd = piece.pidfd
        if not connection.inbox:
            connection.until = time.monotonic() + READ_SECONDS
        connection.inbox += piece.data
        try:
            self._frame(connection)
        except (ProtocolError, PeerError) as error:
            self._reject(connection, error.message)

    def _frame(self, connection: Connection) -> None:
        """Queue the request if it is complete."""
        inbox = connection.inbox
        if connection.need < 0:
            if len(inbox) < protocol.HEADER.size:
                return
            connection.need = protocol.parse_header(inbox)
            if connection.need > protocol.LIMITS[protocol.SMALL]:
                others = sum(c.need for c in self._connections if c.peer.uid == connection.peer.uid and c.need > 0)
                if others > LARGE_PER_USER:
                    raise ProtocolError("too many large messages of one user at the same time")
        have = len(inbox) - protocol.HEADER.size
        if have < connection.need:
            return
        if have > connection.need:
            raise ProtocolError("a second message before the first was answered")
        with memoryview(inbox) as view:
            request = protocol.decode_request(view[protocol.HEADER.size :])
        who = connection.peer.identity(connection.pidfd, self._executables)
        connection.drop_pidfd()
        connection.inbox = bytearray()
        connection.waiting = True  # not read from until it is answered, which is a matter of this turn or the next
        self._queue.append((connection, request, who))

    # Answers -----------------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        """Answer some of the queue: the users who cost least so far first, so that nobody starves the others."""
        if len(self._queue) > 1:
            self._queue.sort(key=lambda item: self._service.users[item[2].uid].cpu_ns)
        batch, self._queue = self._queue[:BATCH], self._queue[BATCH:]
        batch = [item for item in batch if item[0] in self._connections]

        def deliver(index: int, reply: Reply) -> None:
            connection = batch[index][0]
            if connection in self._connections:
                connection.waiting = False
                connection.need = -1
                self._send(connection, reply)

        # Where nobody else is waiting, there is nothing to do while the disk works.
        taken = self._service.handle(
            [(who, request) for _, request, who in batch], deliver, wait=len(self._connections) == 1
        )
        self._queue[:0] = batch[taken:]

    def _reject(self, connection: Connection, message: str) -> None:
        """Say why, then close."""
        connection.closing = True
        connection.inbox = bytearray()
        self._send(connection, protocol.Failed(message=message))

    def _send(self, connection: Connection, reply: Reply) -> None:
        connection.outbox = memoryview(protocol.frame(reply))
        connection.until = time.monotonic() + WRITE_SECONDS
        self._flush(connection)

    def _flush(self, connection: Connection) -> None:
        out = connection.outbox
        while out:
            try:
                out = out[connection.sock.send(out) :]
            except (BlockingIOError, InterruptedError):
                connection.outbox = out
                self._watch(connection, selectors.EVENT_WRITE)
                return
            except OSError:
                self._close(connection)
                return
        connection.outbox = None
        if connection.closing:
            self._close(connection)
            return
        connection.until = time.monotonic() + IDLE_SECONDS
        self._watch(connection, selectors.EVENT_READ)

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        self._service.collect(wait=True)  # what is recorded is sent
        for connection in list(self._connections):
            self._close(connection)
        if self._listener is not None:
            self._listener.close()
        self._selector.close()
