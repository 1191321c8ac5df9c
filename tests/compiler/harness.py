"""From a script to what it prints: parse, check, compile, analyse as the signing helper would, load, run."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from functools import cache

from bpfseal import compiler
from bpfseal.compiler.options import Options
from bpfseal.dsl.check import check
from bpfseal.dsl.env import Target
from bpfseal.dsl.expand import expand
from bpfseal.dsl.parse import parse
from bpfseal.dsl.typed import TypedScript
from bpfseal.errors import BpfsealError
from bpfseal.runtime.environment import RealEnvironment
from bpfseal.signer.bundle import Bundle


@cache
def why_not() -> str:
    """Empty when programs can be loaded on this machine."""
    from bpfseal.runtime import bpf

    if not os.path.exists("/sys/kernel/btf/vmlinux"):
        return "the kernel has no BTF"
    try:
        os.close(bpf.map_create(bpf.MAP_ARRAY, 4, 8, 1))
    except OSError as error:
        return f"bpf(2) is not permitted here: {error.strerror}"
    return ""


@cache
def environment(unsafe: bool = True) -> RealEnvironment:
    return RealEnvironment(Target(unsafe=unsafe))


def typed(text: str, config: dict[str, str | int | bool] | None = None) -> TypedScript:
    return check(expand(parse(text)), environment(), config)


def compiled(text: str, options: Options | None = None, config: dict[str, str | int | bool] | None = None) -> Bundle:
    return compiler.compile(typed(text, config), kernel=environment().world.types, options=options)


def checked(bundle: Bundle) -> Bundle:
    """The bundle, which the signing helper's analysis has passed. Raises Refusal."""
    from bpfseal.signer.check import check as analyse

    analyse(bundle)
    return bundle


def run(
    text: str,
    *,
    options: Options | None = None,
    config: dict[str, str | int | bool] | None = None,
    act: Callable[[], None] | None = None,
    seconds: float = 3.0,
    maps: bool = True,
) -> str:
    """What a script prints until it exits (or until `act` is done, then it is stopped), with its maps."""
    from bpfseal.runtime.load import seal_locally
    from bpfseal.runtime.render.resolve import Resolver
    from bpfseal.runtime.render.text_output import TextOutput
    from bpfseal.runtime.session import Session
    from bpfseal.runtime.sink import OutputSink

    bundle = checked(compiled(text, options, config))
    file = io.StringIO()
    with Session(bundle, seal_locally(bundle)) as session:
        output = TextOutput(file, Resolver(session).text, quiet=True)
        session.start(OutputSink(output, allow_system=True))
        if act is not None:
            act()
            session.stop()
        end = time.monotonic() + seconds
        session.run(timeout=seconds)
        if time.monotonic() >= end:
            raise BpfsealError(f"did not exit within {seconds} seconds: {text}")
        for contents in session.maps.all_contents() if maps else ():
            output.map(contents)
        output.flush()
    return file.getvalue()
