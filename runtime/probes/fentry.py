"""fentry and fexit: kernel functions, and BPF programs, with arguments typed by BTF."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from bpfseal.runtime.probes import AbsentError, ProbeError, Provider, is_wild, matcher, nothing
from bpfseal.runtime.probes.functions import safe, safe_names
from bpfseal.runtime.probes.rawtracepoint import trusted
from bpfseal.runtime.probes.world import World
from bpfseal.signer.btf import BtfError

if TYPE_CHECKING:
    from bpfseal.compiler.kernel import KernelTypes, Prototype
    from bpfseal.dsl.env import Args, AttachSpec, Point
    from bpfseal.dsl.types import Field, Type


def _expand(world: World, spec: AttachSpec) -> Sequence[Point]:
    if world.types is None:
        raise AbsentError(f"{spec.kind} needs the kernel's BTF", hint="a kprobe does without")
    if spec.parts[0] == "bpf" and len(spec.parts) > 1:
        return _programs(world, spec)
    module, function = spec.parts if len(spec.parts) == 2 else ("", spec.parts[0])
    if is_wild(module) or is_wild(function):
        in_module, in_function = matcher(module or "*"), matcher(function)
        owned = ((owner, filter(in_function, names)) for owner, names in _all(world) if in_module(owner))
        return [_point(spec.kind, owner, name) for owner, names in owned for name in names]
    if not safe(function):
        return []
    if module:
        if module != "vmlinux" and module not in world.types.modules():
            raise AbsentError(f"specified module {module} in probe {spec.kind}:{module}:{function} is not loaded")
        return [_point(spec.kind, module, function)] if _own(world, module, function) else []
    if _own(world, "vmlinux", function):
        return [_point(spec.kind, "vmlinux", function)]
    owners = [owner for owner in world.types.modules() if _own(world, owner, function)]
    if len(owners) > 1:
        raise ProbeError(
            f"{function} is in several modules: {', '.join(owners)}", hint=f"write {spec.kind}:MODULE:{function}"
        )
    return [_point(spec.kind, owner, function) for owner in owners]


def _point(kind: str, module: str, function: str) -> Point:
    from bpfseal.dsl.env import Point

    return Point(kind, f"{kind}:{module}:{function}", module, function)


def _own(world: World, module: str, function: str) -> bool:
    """Whether the module's own BTF has the function (the kernel's is below every module's)."""
    assert world.types is not None
    id, base = world.types.find("f", function, module), world.types.btf()
    return id != 0 and base is not None and (module == "vmlinux") == (id < len(base))


def _all(world: World) -> Iterator[tuple[str, list[str]]]:
    """(module, functions) that BTF knows and, where ftrace lists what it can trace, that are in its list; sorted."""
    names = world.names
    if names is None:
        return
    listed = world.functions.traceable if world.functions.listed_by_ftrace else None
    for module in names.modules():
        known = names.functions(module)
        if listed is None:
            yield module, safe_names(known)
        else:
            traceable: Collection[str] = listed.get("" if module == "vmlinux" else module, frozenset())
            yield module, [name for name in known if name in traceable]


def _programs(world: World, spec: AttachSpec) -> Sequence[Point]:
    """Functions of programs, with what their descriptor will be called in the signed load as module."""
    from bpfseal.dsl.env import Point
    from bpfseal.runtime.probes.programs import btf_of, functions, hold

    assert world.types is not None
    wanted = spec.parts[1] if len(spec.parts) == 3 else "*"
    in_name = matcher(spec.parts[-1])
    points = []
    try:
        for id, name in functions():
            if in_name(name) and wanted in ("*", str(id)):
                module = hold(id)
                world.types.add_program(module, btf_of(module))
                number = world.types.find("f", name, module)
                title = f"{spec.kind}:bpf:{id}:{name}"
                points.append(Point(spec.kind, title, module, name, params=(("btf_id", number),)))
    except (OSError, BtfError) as error:
        why = error.message if isinstance(error, BtfError) else error.strerror
        raise AbsentError(f"cannot look at BPF programs: {why}", hint="needs CAP_SYS_ADMIN") from None
    return points


def _args(world: World, point: Point) -> Args:
    from bpfseal.dsl.env import Args
    from bpfseal.dsl.types import RecordInfo

    if world.types is None:
        return nothing()
    proto = world.types.prototype(point.function, point.module)
    if proto is None:
        return Args(None, "argument")
    if point.module.startswith("prog-"):
        return _of_program(point, proto)
    fields, slots = typed_arguments((param.name, param.type) for param in proto.params)
    returns = trusted(proto.returns) if proto.returns is not None and point.kind == "fexit" else None
    # The context of fexit goes on with the result behind the arguments.
    return Args(RecordInfo("args", 8 * slots, fields), "argument", returns, {"arguments": slots})


def _of_program(point: Point, proto: Prototype) -> Args:
    """Arguments of a program's function: the context that the program's source names is not the structure that the
    kernel calls it with, so pointers are bare addresses, to be cast to what they are (struct sk_buff, xdp_buff). Where
    the result is has to be asked for: for some functions the kernel makes room for five arguments, whatever they have
    (btf_distill_func_proto without a prototype, kernel/bpf/btf.c)."""
    from bpfseal.dsl.env import Args
    from bpfseal.dsl.types import Field, Ptr, RecordInfo

    fields = tuple(
        Field(p.name, Ptr(None, "kernel") if isinstance(p.type, Ptr) else p.type, 8 * at, argument=at)
        for at, p in enumerate(proto.params)
    )
    returns = proto.returns if point.kind == "fexit" else None
    return Args(RecordInfo("args", 8 * len(fields), fields), "argument", returns, {"arguments": "unknown"})


def typed_arguments(params: Iterable[tuple[str, Type]]) -> tuple[tuple[Field, ...], int]:
    """Fields by their word in the u64[] context, and the number of words: records of up to 16 bytes that are passed
    by value take as many as they need."""
    from bpfseal.dsl.types import Field, Record, size_of

    fields, at = [], 0
    for name, type in params:
        fields.append(Field(name, trusted(type), 8 * at, argument=at))
        at += max((size_of(type) + 7) // 8, 1) if isinstance(type, Record) else 1
    return tuple(fields), at


def _names(world: World, kind: str, pattern: str) -> Iterable[str]:
    if pattern.startswith("bpf:"):
        from bpfseal.runtime.probes.programs import functions

        return sorted(f"bpf:{id}:{name}" for id, name in functions())
    return chain.from_iterable(map(f"{module}:".__add__, names) for module, names in _all(world))


def _types_of(types: KernelTypes, id: int) -> str:
    """Under what name the types of a program are known, for a listing."""
    from bpfseal.runtime.probes.programs import btf_of, hold, release

    try:
        module = hold(id)
        types.add_program(module, btf_of(module))
        return module
    except (OSError, BtfError):
        return ""
    finally:
        release()


def _describe(world: World, kind: str, name: str) -> Iterable[str]:
    module, _, function = name.rpartition(":")
    if module.startswith("bpf:") and world.types is not None:
        module = _types_of(world.types, int(module.removeprefix("bpf:")))
    proto = world.types.prototype(function, module) if world.types is not None else None
    if proto is None or world.types is None:
        return []
    lines = [world.types.spell(param.id, param.name, module) for param in proto.params]
    if kind == "fexit" and proto.return_id:
        lines.append(world.types.spell(proto.return_id, "retval", module))
    return lines


PROVIDER = Provider(_expand, _args, _names, _describe)
