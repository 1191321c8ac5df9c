"""`Identity`: who asks, as the kernel tells it."""

from __future__ import annotations

from msgspec import Struct


class Identity(Struct, frozen=True):
    """A peer of the helper. Nothing in here comes from a message.

    uid, gid, groups  credentials of the message; groups are the supplementary ones
    pid               in the helper's pid namespace
    cgroup_id         inode number of the cgroup (PIDFD_GET_INFO), 0 where the kernel does not tell
    cgroup_path       path below the cgroup mount, "" if unknown
    exe, exe_sha256   hints only: the peer can exec something else after connecting; None if not readable
    exe_verity        fs-verity digest "sha256:HEX" of the executable, None where it has none
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    pid: int = 0
    cgroup_id: int = 0
    cgroup_path: str = ""
    exe: str | None = None
    exe_sha256: str | None = None
    exe_verity: str | None = None
