"""The bundle of the enforcement programs, which the signing helper analyses and seals like any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bpfseal.errors import BpfsealError
from bpfseal.runtime import enforce_guard as guard
from bpfseal.runtime import enforce_layout as layout
from bpfseal.runtime import enforce_program as program
from bpfseal.runtime.enforce_layout import ALLOWED, CGROUPS, CONFIG, GUARDED, HELPERS, LOG, PENDING, TAGS, Offsets
from bpfseal.signer.btf import FUNC, Btf
from bpfseal.signer.bundle import BUNDLE_VERSION, Attach, Attributes, Bundle, MapSpec, ProgramSpec

_LSM, _TRACING, _LSM_MAC, _TRACE_RAW_TP = 29, 26, 27, 23
_ARRAY, _HASH, _RINGBUF = 2, 1, 27
_R, _RW, _W, _DELETE, _OUTPUT = ("read",), ("read", "write"), ("write",), ("delete",), ("output",)

_TELL = ("get_current_comm", "get_current_pid_tgid", "get_current_uid_gid", "ktime_get_boot_ns", "ringbuf_output")


class _Hook(NamedTuple):
    """One program: the LSM hook it is for, its code, and what the code does by helpers and maps."""

    name: str
    hook: str
    code: Callable[[Offsets], bytes]
    helpers: tuple[str, ...]
    maps: tuple[tuple[int, tuple[str, ...]], ...]


_JUDGING = (
    _Hook(
        "require",
        "bpf_prog_load",
        program.require_code,
        ("get_current_ancestor_cgroup_id", "map_lookup_elem", "map_update_elem", *_TELL),
        ((CONFIG, _RW), (ALLOWED, _R), (LOG, _OUTPUT), (CGROUPS, _R), (PENDING, _W)),
    ),
    _Hook(
        "admit",
        "bpf_prog",
        program.admit_code,
        ("map_delete_elem", "map_lookup_elem", *_TELL),
        ((CONFIG, _RW), (LOG, _OUTPUT), (TAGS, _R), (PENDING, ("delete", "read"))),
    ),
    _Hook("drop", "bpf_prog_free", lambda _: program.drop_code(), ("map_delete_elem",), ((PENDING, _DELETE),)),
)
_LOOK = ("get_current_pid_tgid", "ktime_get_boot_ns", "map_lookup_elem")
_GUARDING = (
    _Hook("guard_map", "bpf_map", guard.map_code, _LOOK, ((CONFIG, _RW), (GUARDED, _R))),
    _Hook("guard_unlink", "inode_unlink", guard.unlink_code, _LOOK, ((CONFIG, _RW),)),
    _Hook("guard_rename", "inode_rename", guard.rename_code, _LOOK, ((CONFIG, _RW),)),
    _Hook("guard_umount", "sb_umount", guard.umount_code, _LOOK, ((CONFIG, _RW),)),
)
# Names of the pinned attachments, in the order of the bundle's programs; "require" goes first when they are removed.
LINKS = tuple(f"link_{name}" for name in ("require", "forget", *(h.name for h in (*_JUDGING[1:], *_GUARDING))))


def links(*, guarded: bool) -> tuple[str, ...]:
    """The attachments of an enforcement with or without the guard."""
    return LINKS if guarded else LINKS[: 1 + len(_JUDGING)]


def _source(hooks: tuple[_Hook, ...]) -> str:
    lines = [f"lsm:{hook.hook}" for hook in hooks]
    return "\n".join(("// bpfseal enforcement, written in assembly", "rawtracepoint:sched_process_exit", *lines, ""))


def _lsm(types: Btf, at: Offsets, hook: _Hook) -> ProgramSpec:
    target = f"bpf_lsm_{hook.hook}"
    if not (id := types.find(target, FUNC)):
        raise BpfsealError(f"this kernel has no LSM hook {hook.hook}, so nothing can be enforced")
    code = hook.code(at)
    helpers = set(hook.helpers)
    if hook.hook == "bpf_prog_load" and at.by_session:
        helpers.add("get_current_task_btf")
    return ProgramSpec(
        name=f"bpfseal_{hook.name}"[:15],
        type=_LSM,
        insns=code,
        expected_attach_type=_LSM_MAC,
        attach_btf=target,
        attach_btf_id=id,
        declared=Attributes(insns=len(code) // 8, helpers=tuple(sorted(helpers)), maps=hook.maps),
        attach=(Attach(kind="trace", probe=f"lsm:{hook.hook}", target=hook.hook),),
        linked=True,
    )


def _forget(at: Offsets) -> ProgramSpec:
    code = program.forget_code()
    return ProgramSpec(
        name="bpfseal_forget",
        type=_TRACING,
        insns=code,
        expected_attach_type=_TRACE_RAW_TP,
        attach_btf="btf_trace_sched_process_exit",
        attach_btf_id=at.exit_id,
        declared=Attributes(
            insns=len(code) // 8,
            helpers=("get_current_pid_tgid", "map_delete_elem", "map_lookup_elem"),
            maps=((CONFIG, _RW), (ALLOWED, _DELETE), (HELPERS, ("delete", "read"))),
        ),
        attach=(Attach(kind="trace", probe="rawtracepoint:sched_process_exit", target="sched_process_exit"),),
        linked=True,
    )


def bundle(types: Btf, *, guarded: bool = False) -> Bundle:
    """The enforcement programs for the running kernel, in the order of `links`. Raises BpfsealError where they cannot
    work."""
    at = layout.offsets(types)
    hooks = (*_JUDGING, *_GUARDING) if guarded else _JUDGING
    require, *others = (_lsm(types, at, hook) for hook in hooks)

    def hash_map(name: str, key: int = 4, entries: int = 64) -> MapSpec:
        return MapSpec(name=name, type=_HASH, key_size=key, value_size=4, max_entries=entries)

    return Bundle(
        version=BUNDLE_VERSION,
        programs=(require, _forget(at), *others),
        maps=(
            MapSpec(name="config", type=_ARRAY, key_size=4, value_size=layout.CONFIG_SIZE, max_entries=1),
            hash_map("allowed"),
            hash_map("helpers"),
            MapSpec(name="log", type=_RINGBUF, key_size=0, value_size=0, max_entries=layout.LOG_BYTES),
            hash_map("tags", 8, layout.MAX_EXCEPTIONS),
            hash_map("cgroups", 8, layout.MAX_EXCEPTIONS),
            hash_map("pending", 8, layout.MAX_PENDING),
            hash_map("guarded"),
        ),
        source=_source(hooks),
    )
