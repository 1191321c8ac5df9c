"""`bpfseal check`: would it compile? Without privileges, without attaching."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from bpfseal.dsl.source import Diagnostic, DslError, Source, render
from bpfseal.errors import BpfsealError
from bpfseal.runtime.build import Request, build, read_source


def main(argv: list[str]) -> int:
    """0 when every program would compile, else 1."""
    parser = argparse.ArgumentParser(
        prog="bpfseal check",
        description="Parse, check and compile programs without privileges and without attaching anything.",
        epilog="Status 0: all would compile. Probe points that this kernel lacks are warnings.",
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help='scripts; "-" reads standard input')
    parser.add_argument("-e", dest="programs", action="append", default=[], metavar="PROGRAM", help="a program")
    parser.add_argument("--param", action="append", default=[], help="a positional parameter ($1 …)")
    parser.add_argument("--unsafe", action="store_true", help="as the trace would be run")
    parser.add_argument("--json", action="store_true", help="diagnostics as JSON, one object per program")
    options = parser.parse_args(argv)
    if not options.files and not options.programs:
        parser.error("give a FILE or -e PROGRAM")
    failed = 0
    for name, text in _programs(options.files, options.programs):
        failed |= _check(name, text, options)
    return failed


def _programs(files: list[str], programs: list[str]) -> list[tuple[str, str]]:
    return [("stdin", program) for program in programs] + [
        (name, text) for text, name in (read_source(file) for file in files)
    ]


def _check(name: str, text: str, options: argparse.Namespace) -> int:
    request = Request(
        text=text,
        name=name,
        path=None if name == "stdin" else name,
        params=tuple(options.param),
        unsafe=options.unsafe,
        config={"missing_probes": "warn"},
        mode="check",
        cache=False,
    )
    try:
        built = build(request)
    except DslError as error:
        if options.json:
            _json(name, [_entry(d, error.sources) for d in error.diagnostics])
        else:
            sys.stderr.write(error.render() + "\n")
        return int(any(d.severity == "error" for d in error.diagnostics))
    except BpfsealError as error:
        if options.json:
            _json(name, [{"severity": "error", "message": error.message, "hint": error.hint}])
        else:
            sys.stderr.write(f"{name}: error: {error.message}\n" + (f"HINT: {error.hint}\n" if error.hint else ""))
        return 1
    if options.json:
        _json(name, [{"severity": "warning", "message": warning} for warning in built.warnings])
    else:
        for warning in built.warnings:
            sys.stderr.write(warning + "\n")
        insns = sum(len(program.insns) // 8 for program in built.bundle.programs)
        sys.stdout.write(f"{name}: ok: {len(built.bundle.programs)} programs, {insns} instructions\n")
    return 0


def _json(name: str, diagnostics: list[dict[str, Any]]) -> None:
    import json

    sys.stdout.write(json.dumps({"file": name, "diagnostics": diagnostics}) + "\n")


def _entry(diagnostic: Diagnostic, sources: list[Source]) -> dict[str, Any]:
    entry: dict[str, Any] = {"severity": diagnostic.severity, "message": diagnostic.message, "hint": diagnostic.hint}
    span = diagnostic.span
    if 0 <= span.source < len(sources):
        source = sources[span.source]
        line, column = source.position(span.start)
        end_line, end_column = source.position(span.end)
        entry |= {"source": source.name, "line": line, "column": column, "endLine": end_line, "endColumn": end_column}
    entry["rendered"] = render(diagnostic, sources)
    return entry
