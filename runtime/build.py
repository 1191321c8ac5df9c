"""Source text to Bundle: the one pipeline that the command line, the API and the notebook use."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import msgspec

from bpfseal.compiler.layout import Reader
from bpfseal.compiler.layout import decode as decode_reader
from bpfseal.errors import BpfsealError
from bpfseal.signer.bundle import Bundle
from bpfseal.signer.bundle import decode as decode_bundle
from bpfseal.signer.bundle import encode as encode_bundle
from bpfseal.signer.limits import MAX_SOURCE_BYTES

if TYPE_CHECKING:
    from bpfseal.dsl.typed import TypedScript


class Request(msgspec.Struct, frozen=True):
    """What to build. `name` is for messages; `params` are the script's own, `script_params` those behind "--", which
    may be named; `mode` is "" for a trace, "test" or "bench" for the probes of that kind, "check" for all; `debug`
    names stages to print; `dwarf_pids`: further processes that dw_ustack() is about."""

    text: str
    name: str = "stdin"
    path: str | None = None
    params: tuple[str, ...] = ()
    script_params: tuple[str, ...] = ()
    pid: int = 0
    command: str | None = None
    dwarf_pids: tuple[int, ...] = ()
    unsafe: bool = False
    config: dict[str, str | int | bool] = msgspec.field(default_factory=dict)
    include_dirs: tuple[str, ...] = ()
    includes: tuple[str, ...] = ()
    debug_info: tuple[str, ...] = ()
    traceable_functions: str = ""
    probe_filter: str = ""
    mode: str = ""
    helper_warnings: bool = False
    cache: bool = True
    debug: tuple[str, ...] = ()
    emit_llvm: str | None = None


class Built(msgspec.Struct, frozen=True):
    """`data` are the bundle's canonical bytes; `warnings` are ready to be written to stderr."""

    data: bytes
    bundle: Bundle
    reader: Reader
    warnings: tuple[str, ...]


def read_source(path: str) -> tuple[str, str]:
    """(text, name) of a script file, "-" for standard input. Raises BpfsealError."""
    name = "stdin" if path == "-" else path
    try:
        if path == "-":
            data = sys.stdin.buffer.read(MAX_SOURCE_BYTES + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(MAX_SOURCE_BYTES + 1)
    except OSError as error:
        raise BpfsealError(f"failed to open file '{name}': {error.strerror}") from None
    if len(data) > MAX_SOURCE_BYTES:
        raise BpfsealError(f"{name} is larger than {MAX_SOURCE_BYTES >> 20} MiB, which no script needs to be")
    if b"\0" in data:
        raise BpfsealError(f"{name} is not text: it contains NUL bytes")
    try:
        return data.decode(), name
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BpfsealError(f"{name}:{line}: not UTF-8 text (byte 0x{data[error.start]:02x})") from None


def build(request: Request) -> Built:
    """Compile, or take from the cache. Raises DslError and other BpfsealErrors."""
    from bpfseal.compiler import cache

    key = ""
    if request.cache and not request.debug and not request.emit_llvm and not _changeable(request):
        key = cache.key(
            request.text,
            request.params,
            {**request.config, "unsafe": request.unsafe, "pid": request.pid, "command": request.command or ""},
            extra=(
                "--",
                *request.script_params,
                "--",
                request.mode,
                request.path or "",
                str(request.helper_warnings),
                *request.include_dirs,
                "--",
                *request.debug_info,
                "--",
                request.probe_filter,
            ),
        )
    if key:
        data = cache.load(key)
        if data is not None:
            try:
                bundle = decode_bundle(data)
                reader = decode_reader(bundle.reader)
                return Built(data, bundle, reader, reader.warnings)
            except BpfsealError:
                pass  # an entry of another version or a damaged one: as good as none
    bundle, reader = _compile(request)
    data = encode_bundle(bundle)
    if key:
        cache.store(key, data)
    return Built(data, bundle, reader, reader.warnings)


def _changeable(request: Request) -> bool:
    """Whether files that may change without the script matter: then it is compiled anew."""
    return bool(request.includes or request.traceable_functions)


def check(request: Request) -> TypedScript:
    """Parse, expand and check: the typed script. Needs no privileges. Raises DslError."""
    from pathlib import Path

    from bpfseal.dsl.check import check as check_script
    from bpfseal.dsl.env import Target
    from bpfseal.dsl.expand_params import split_arguments
    from bpfseal.dsl.front import front
    from bpfseal.runtime.environment import RealEnvironment

    if request.debug_info:
        from bpfseal.runtime.elf import search_debug_files

        search_debug_files(request.debug_info)
    if request.traceable_functions:
        from bpfseal.runtime.probes.functions import list_functions_by

        list_functions_by(request.traceable_functions)
    target = Target(
        pid=request.pid, command=request.command or "", unsafe=request.unsafe, checking=request.mode == "check"
    )
    positional, named = split_arguments(request.params, request.script_params)
    script, environment = front(
        request.text,
        request.name,
        RealEnvironment(target),
        params=positional,
        named=named,
        folder=Path(request.path).parent if request.path else None,
        include_folders=[Path(name) for name in request.include_dirs],
        includes=request.includes,
    )
    return check_script(script, environment, {**_from_environment(), **request.config})


def _from_environment() -> dict[str, str | int | bool]:
    """Config variables as BPFTRACE_NAME in the process's environment; names that mean something else are left out."""
    from bpfseal.dsl.table import CONFIG, RENAMED

    prefix = "BPFTRACE_"
    found: dict[str, str | int | bool] = {}
    for name, value in os.environ.items():
        if name.startswith(prefix):
            config = name.removeprefix(prefix).lower()
            if config in CONFIG or config in RENAMED:
                found[config] = value
    return found


def _compile(request: Request) -> tuple[Bundle, Reader]:
    from bpfseal import compiler

    options = compiler.Options(helper_errors=2 if request.helper_warnings else 1)
    script = check(request)
    from bpfseal.runtime.linked import link_in_loader

    if request.mode != "check":
        from bpfseal.runtime.selection import chosen

        script = chosen(script, request.mode, request.probe_filter)
    bundle = compiler.compile(script, options=options)
    reader = decode_reader(bundle.reader)
    return bundle if request.mode else link_in_loader(bundle, reader), reader
