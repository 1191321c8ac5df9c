"""Attach points: from `t:syscalls:sys_enter_*` as written to an AttachSpec, with the shape checked.

What is checked is what the text alone tells: the provider, how many parts it takes, numbers, units and modes. Whether
the point exists is asked of the Environment.

Parts by provider, as `AttachSpec.parts` holds them (brackets: may be missing; numbers are canonical decimals):

    begin end            none
    self                 "signal" SIGNAL
    test bench           NAME
    interval profile     UNIT NUMBER; UNIT us ms s or hz, a bare duration (`interval:1s`) is in us
    software hardware    EVENT [COUNT]
    tracepoint           CATEGORY EVENT; `tracepoint:*x*` alone is in every category
    rawtracepoint        [MODULE] EVENT
    kprobe               [MODULE] FUNCTION[+OFFSET] or ADDRESS
    kretprobe            [MODULE] FUNCTION
    fentry fexit         [MODULE] FUNCTION, or "bpf" [ID] PROGRAM
    uprobe               PATH [LANGUAGE] FUNCTION[+OFFSET] or ADDRESS, or PATH "@" FILE LINE [COLUMN]
    uretprobe            PATH [LANGUAGE] FUNCTION
    usdt                 PATH [NAMESPACE] NAME; an empty NAMESPACE is any
    watchpoint           ADDRESS LENGTH MODE
    iter                 NAME [PIN]
    lsm                  HOOK
    xdp                  INTERFACE
    tc                   INTERFACE ingress|egress

With a traced process (`pid`) the PATH of uprobe, uretprobe and usdt may be missing; it is "" then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from bpfseal.dsl.env import AttachSpec
from bpfseal.dsl.parse_literals import LiteralError, decode_integer
from bpfseal.errors import BpfsealError

Parts = tuple[str, ...]

ALIASES = {
    "t": "tracepoint",
    "rt": "rawtracepoint",
    "k": "kprobe",
    "kr": "kretprobe",
    "f": "fentry",
    "fr": "fexit",
    "kfunc": "fentry",
    "kretfunc": "fexit",
    "u": "uprobe",
    "ur": "uretprobe",
    "U": "usdt",
    "i": "interval",
    "p": "profile",
    "s": "software",
    "h": "hardware",
    "w": "watchpoint",
    "it": "iter",
}

UNITS = ("us", "ms", "s", "hz")
LANGUAGES = ("cpp",)

# Providers that a wildcard in the provider's place looks at; with a path in the second place the latter two.
LISTED = ("kprobe", "tracepoint", "software", "hardware", "fentry", "iter", "rawtracepoint")
LISTED_USER = ("uprobe", "usdt")

_LONGEST = 64  # pattern for the name of a provider

REMOVED = {
    "asyncwatchpoint": "use watchpoint:ADDRESS:LENGTH:MODE",
    "aw": "use watchpoint:ADDRESS:LENGTH:MODE",
}


class PointError(BpfsealError):
    """An attach point that cannot be; the caller knows where it stands in the script."""


def specs(text: str, *, pid: bool = False, unsafe: bool = False) -> tuple[AttachSpec, ...]:
    """The attach point `text` by provider: one spec, or several when the provider is a wildcard.

    Positional parameters have been put in by `expand`. `pid`: a process is traced, so paths may be missing. `unsafe`:
    kernel addresses are allowed. Raises PointError.
    """
    parts = split(text)
    provider, rest = parts[0], tuple(parts[1:])
    if "*" in provider or "?" in provider or "[" in provider:
        return _several(text, provider, rest, pid, unsafe)
    kind = canonical(provider)
    return (AttachSpec(kind, _shape(kind, rest, pid, unsafe), text, provider),)


def canonical(provider: str) -> str:
    """The full name of a provider given by any of its names. Raises PointError."""
    if provider in _SHAPES:
        return provider
    for name in (provider, provider.lower()):
        kind = ALIASES.get(name, name)
        if kind in _SHAPES:
            return kind
    if provider in REMOVED:
        raise PointError(f"there is no probe type '{provider}' any more", hint=REMOVED[provider])
    if not provider:
        raise PointError("this attach point has no probe type", hint="for example kprobe:vfs_read")
    from difflib import get_close_matches

    near = get_close_matches(provider.lower(), list(_SHAPES), 2)
    hint = f"did you mean {' or '.join(near)}?" if near else "probe types: " + ", ".join(_SHAPES)
    raise PointError(f"there is no probe type '{provider}'", hint=hint)


def split(text: str) -> list[str]:
    """Parts between colons, quotes resolved; an unquoted `@` (source location) is a part of its own."""
    parts: list[str] = []
    part: list[str] = []
    quoted = False
    i = 0
    while i < len(text):
        sign = text[i]
        if sign == '"':
            quoted = not quoted
        elif quoted and sign == "\\" and i + 1 < len(text):
            i += 1
            part.append(text[i])
        elif quoted or sign not in ":@":
            part.append(sign)
        else:
            parts.append("".join(part))
            part = []
            if sign == "@":
                parts.append("@")
        i += 1
    if quoted:
        raise PointError("the quotes of this attach point are not closed")
    parts.append("".join(part))
    return parts


def substitute(text: str, params: Sequence[str]) -> str:
    """`text` with its unquoted $1, $2 … replaced by `params`; a parameter that was not given is empty.

    Raises PointError for a dollar that no number follows.
    """
    if "$" not in text:
        return text
    out: list[str] = []
    quoted = False
    i = 0
    while i < len(text):
        sign = text[i]
        i += 1
        if sign == '"':
            quoted = not quoted
        elif sign == "\\" and quoted and i < len(text):
            out.append(sign)
            sign = text[i]
            i += 1
        elif sign == "$" and not quoted:
            end = i
            while end < len(text) and text[end].isascii() and text[end].isdigit():
                end += 1
            digits = text[i:end]
            if not digits or digits[0] == "0" or len(digits) > 9:
                shown = digits or text[i : i + 1]
                raise PointError(
                    f"'${shown}' is no positional parameter", hint=f'quote it if it belongs to the name: "${shown}"'
                )
            number = int(digits)
            out.append(params[number - 1] if number <= len(params) else "")
            i = end
            continue
        out.append(sign)
    return "".join(out)


def _several(text: str, pattern: str, rest: Parts, pid: bool, unsafe: bool) -> tuple[AttachSpec, ...]:
    """Every provider that `pattern` matches and that `rest` fits."""
    user = pid or (bool(rest) and "/" in rest[0])
    if not rest:
        pattern, rest = "*", (pattern,)
    if len(pattern) > _LONGEST:  # fnmatch takes quadratic time for brackets
        raise PointError(f"no probe type matches '{pattern[:_LONGEST]}…'")
    found = []
    for kind in LISTED_USER if user else LISTED:
        if fnmatchcase(kind, pattern):
            try:
                found.append(AttachSpec(kind, _shape(kind, rest, pid, unsafe), f"{kind}:{':'.join(rest)}", pattern))
            except PointError:
                continue  # as with a file name that a shell's wildcard does not fit
    if not found:
        raise PointError(f"no probe type matches '{text}'")
    return tuple(found)


# --- shapes -----------------------------------------------------------------------------------------------------


def _need(parts: Parts, least: int, most: int, form: str) -> None:
    kind = form.partition(":")[0]
    if not least <= len(parts) <= most:
        raise PointError(f"{kind} needs {form.partition(':')[2] or 'nothing behind it'}", hint=f"write {form}")
    if any(not part for part in parts):
        raise PointError(f"{kind}: a part between the colons is empty", hint=f"write {form}")


def _number(text: str, what: str) -> int:
    try:
        return decode_integer(text)
    except LiteralError as e:
        raise PointError(f"{what} must be a number, not '{text}'", hint=e.hint) from None


def _is_number(text: str) -> bool:
    """Functions may start with a digit too, so only what reads as a number is an address."""
    try:
        decode_integer(text)
    except LiteralError:
        return False
    return True


def _offset(function: str, kind: str) -> str:
    """`function+offset` with the offset in decimal."""
    name, plus, offset = function.partition("+")
    if not plus:
        return function
    if not name or not offset or "+" in offset:
        raise PointError(f"{kind}: '{function}' is no function with one offset", hint=f"write {kind}:…:FUNCTION+OFFSET")
    return f"{name}+{_number(offset, 'the offset')}"


def _nothing(kind: str) -> Callable[[Parts, bool, bool], Parts]:
    def shape(parts: Parts, pid: bool, unsafe: bool) -> Parts:
        if parts == ("*",):
            return ()
        if parts:
            raise PointError(f"{kind} takes nothing behind it", hint=f"write {kind} {{ … }}")
        return ()

    return shape


def _named(kind: str) -> Callable[[Parts, bool, bool], Parts]:
    def shape(parts: Parts, pid: bool, unsafe: bool) -> Parts:
        _need(parts, 1, 1, f"{kind}:NAME")
        return parts

    return shape


def _self(parts: Parts, pid: bool, unsafe: bool) -> Parts:
    _need(parts, 2, 2, "self:signal:SIGNAL")
    if parts[0] != "signal":
        raise PointError(f"self has no trigger '{parts[0]}'", hint="write self:signal:SIGUSR1")
    if parts[1] != "SIGUSR1":
        raise PointError(f"self:signal does not support '{parts[1]}'", hint="write self:signal:SIGUSR1")
    return parts


def _timed(kind: str) -> Callable[[Parts, bool, bool], Parts]:
    form = f"{kind}:UNIT:NUMBER"

    def shape(parts: Parts, pid: bool, unsafe: bool) -> Parts:
        _need(parts, 1, 2, form)
        if len(parts) == 1:
            if "*" in parts[0]:
                return parts
            nanoseconds = _number(parts[0], f"the period of {kind}")
            if nanoseconds < 1000:
                raise PointError(
                    f"{kind}: a period of {nanoseconds} ns is too short, the least is 1us",
                    hint=f"write a unit: {kind}:s:{nanoseconds}, {kind}:hz:{nanoseconds}",
                )
            return ("us", str(nanoseconds // 1000))
        unit, number = parts
        if unit not in UNITS:
            raise PointError(f"'{unit}' is no unit of {kind}", hint="units: " + ", ".join(UNITS))
        value = _number(number, f"the {'rate' if unit == 'hz' else 'period'} of {kind}")
        if value <= 0:
            raise PointError(f"the {'rate' if unit == 'hz' else 'period'} of {kind} must be more than zero")
        return (unit, str(value))

    return shape


def _counted(kind: str) -> Callable[[Parts, bool, bool], Parts]:
    form = f"{kind}:EVENT[:COUNT]"

    def shape(parts: Parts, pid: bool, unsafe: bool) -> Parts:
        if len(parts) == 2 and parts[1] in ("", "*"):
            parts = parts[:1]
        _need(parts, 1, 2, form)
        if len(parts) == 1:
            return parts
        return (parts[0], str(_number(parts[1], f"the count of {kind}")))

    return shape


def _tracepoint(parts: Parts, pid: bool, unsafe: bool) -> Parts:
    if len(parts) == 1 and "*" in parts[0]:
        parts = ("*", parts[0])
    _need(parts, 2, 2, "tracepoint:CATEGORY:EVENT")
    return parts


def _rawtracepoint(parts: Parts, pid: bool, unsafe: bool) -> Parts:
    _need(parts, 1, 2, "rawtracepoint:[MODULE:]EVENT")
    return parts


def _kprobe(parts: Parts, pid: bool, unsafe: bool) -> Parts:
    _need(parts, 1, 2, "kprobe:[MODULE:]FUNCTION[+OFFSET]")
    if _is_number(parts[-1]):
        if not unsafe:
            raise PointError("a kprobe at an address needs --unsafe", hint="name the function: kprobe:FUNCTION+OFFSET")
        return (*parts[:-1], str(_number(parts[-1], "the address")))
    return (*parts[:-1], _offset(parts[-1], "kprobe"))


def _kretprobe(parts: Parts, pid: bool, unsafe: bool) -> Parts:
    _need(parts, 1, 2, "kretprobe:[MODULE:]FUNCTION")
    if "+" in parts[-1]:
        raise PointError("a kretprobe takes no offset: it fires when the function returns")
    return parts


def _fentry(kind: str) -> Callable[[Parts, bool, bool], Parts]:
    def shape(parts: Parts, pid: bool, unsafe: bool) -> Parts:
        if parts[:1] == ("bpf",):
            _need(parts, 2, 3, f"{kind}:bpf:[ID:]PROGRAM")
            if len(parts) == 3 and parts[1] != "*":
                return ("bpf", str(_number(parts[1], "the id of a BPF program")), parts[2])
            return parts
        _need(parts, 1, 2, f"{kind}:[MODULE:]FUNCTION")
        return parts

    return shape


def _uprobe(kind: str) -> Callable[[Parts, bool, bool], Parts]:
    takes_offset = kind == "uprobe"
    form = f"{kind}:BINARY:[cpp:]FUNCTION" + ("[+OFFSET]" if takes_offset else "")

    def shape(parts: Parts, pid: bool, unsafe: bool) -> Parts:
        if len(parts) > 1 and parts[1] == "@":
            return _source_location(parts, kind)
        if pid and (len(parts) == 1 or (len(parts) == 2 and parts[0] in LANGUAGES)):
            parts = ("", *parts)
        anywhere = pid and parts[:1] == ("",)
        _need(parts[1:] if anywhere else parts, 1 if anywhere else 2, 2 if anywhere else 3, form)
        if len(parts) == 3 and parts[1] not in LANGUAGES:
            raise PointError(f"{kind}: unknown language '{parts[1]}'", hint=f"write {form}")
        function = parts[-1]
        if function.endswith("/") and function.count("/") > 1:
            raise PointError(f"'{function}' is no function", hint="a blank goes before a predicate: … /condition/")
        if _is_number(function):
            if "*" in parts[0]:
                raise PointError(f"{kind}: an address needs one binary, not a wildcard")
            return (*parts[:-1], str(_number(function, "the address")))
        if "+" in function and not takes_offset:
            raise PointError(f"a {kind} takes no offset: it fires when the function returns")
        # C++ names may hold a plus (operator+), only a number behind it is an offset
        if takes_offset and not ("operator" in function and len(parts) == 3):
            function = _offset(function, kind)
        return (*parts[:-1], function)

    return shape


def _source_location(parts: Parts, kind: str) -> Parts:
    form = "uprobe:BINARY@FILE:LINE[:COLUMN]"
    if kind != "uprobe":
        raise PointError("only a uprobe can stand at a line of source", hint=f"write {form}")
    if "*" in parts[0]:
        raise PointError("a line of source needs one binary, not a wildcard", hint=f"write {form}")
    _need(parts, 4, 5, form)
    numbers = tuple(str(_number(p, what)) for p, what in zip(parts[3:], ("the line", "the column"), strict=False))
    return (*parts[:3], *numbers)


def _usdt(parts: Parts, pid: bool, unsafe: bool) -> Parts:
    form = "usdt:BINARY:[NAMESPACE:]NAME"
    if pid and len(parts) == 1:
        parts = ("", *parts)
    if not 2 <= len(parts) <= 3:
        raise PointError("usdt needs BINARY:[NAMESPACE:]NAME", hint=f"write {form}")
    if not parts[-1]:
        raise PointError("usdt: the name of the probe is empty", hint=f"write {form}")
    if not parts[0] and not pid:
        raise PointError("usdt needs a binary where no process is traced", hint=f"write {form}; * is any binary")
    return parts


def _watchpoint(parts: Parts, pid: bool, unsafe: bool) -> Parts:
    _need(parts, 3, 3, "watchpoint:ADDRESS:LENGTH:MODE")
    address = _number(parts[0], "the address of a watchpoint")
    length = _number(parts[1], "the length of a watchpoint")
    mode = "".join(sorted(parts[2]))
    if not address:
        raise PointError("a watchpoint cannot stand at address 0")
    if length not in (1, 2, 4, 8):
        raise PointError(f"a watchpoint cannot be {length} bytes long", hint="lengths: 1, 2, 4, 8")
    if set(mode) - set("rwx") or len(set(mode)) != len(mode):
        raise PointError(f"'{parts[2]}' is no mode of a watchpoint", hint="letters of r (read), w (write), x (execute)")
    return (str(address), str(length), mode)


def _iter(parts: Parts, pid: bool, unsafe: bool) -> Parts:
    _need(parts, 1, 2, "iter:NAME[:PIN]")
    if any("*" in part for part in parts):
        raise PointError("iter takes no wildcards")
    return parts


def _tc(parts: Parts, pid: bool, unsafe: bool) -> Parts:
    _need(parts, 2, 2, "tc:INTERFACE:ingress|egress")
    if parts[1] not in ("ingress", "egress"):
        raise PointError(f"tc has no direction '{parts[1]}'", hint="write tc:INTERFACE:ingress or tc:INTERFACE:egress")
    return parts


_SHAPES: dict[str, Callable[[Parts, bool, bool], Parts]] = {
    "begin": _nothing("begin"),
    "end": _nothing("end"),
    "self": _self,
    "test": _named("test"),
    "bench": _named("bench"),
    "interval": _timed("interval"),
    "profile": _timed("profile"),
    "software": _counted("software"),
    "hardware": _counted("hardware"),
    "tracepoint": _tracepoint,
    "rawtracepoint": _rawtracepoint,
    "kprobe": _kprobe,
    "kretprobe": _kretprobe,
    "fentry": _fentry("fentry"),
    "fexit": _fentry("fexit"),
    "uprobe": _uprobe("uprobe"),
    "uretprobe": _uprobe("uretprobe"),
    "usdt": _usdt,
    "watchpoint": _watchpoint,
    "iter": _iter,
    "lsm": _named("lsm"),
    "xdp": _named("xdp"),
    "tc": _tc,
}

PROVIDERS = tuple(_SHAPES)


def _shape(kind: str, parts: Parts, pid: bool, unsafe: bool) -> Parts:
    return _SHAPES[kind](parts, pid, unsafe)
