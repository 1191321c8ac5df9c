"""`import "path";`: files and directories that are merged into the script.

A path is looked up next to the script that imports it, then next to the main script. Nothing is read that anybody
else could have written: files and directories with write permission for others are refused.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from bpfseal.dsl import ast
from bpfseal.dsl.expand_params import Fault
from bpfseal.dsl.parse import parse
from bpfseal.dsl.source import Diagnostic, DslError, Source

MAX_FILE = 4 << 20
KINDS = (".bt", ".h", ".bpf.c")


def merge_imports(script: ast.Script, folder: Path) -> ast.Script:
    """`script`, which stands in `folder`, with everything it imports in front of its own. Raises DslError."""
    if not script.imports:
        return script
    sources = list(script.sources)
    imports = Imports(sources, folder)
    try:
        for wanted in script.imports:
            imports.add(wanted, folder)
    except Fault as fault:
        raise DslError([fault.diagnostic], sources) from None
    parts = [*imports.scripts, script]
    return ast.Script(
        sources=tuple(sources),
        preamble=(*imports.headers, *(text for part in parts for text in part.preamble)),
        config=script.config,
        maps=tuple(m for part in parts for m in part.maps),
        macros=tuple(m for part in parts for m in part.macros),
        functions=tuple(f for part in parts for f in part.functions),
        probes=tuple(p for part in parts for p in part.probes),
        warnings=script.warnings,
        c_files=tuple(imports.c_files),
    )


class Imports:
    """Everything that was imported, each file once, what it needs before itself."""

    def __init__(self, sources: list[Source], root: Path) -> None:
        self.sources = sources
        self.root = root
        self.seen: set[Path] = set()
        self.scripts: list[ast.Script] = []
        self.headers: list[ast.CText] = []
        self.c_files: list[ast.CFile] = []

    def add(self, wanted: ast.Import, folder: Path) -> None:
        """Raises Fault or DslError; see the module."""
        name = wanted.path
        if not name or "\0" in name:
            raise Fault("the path of this import is empty", wanted.span)
        for base in dict.fromkeys((folder, self.root)):
            path = base / name
            if os.path.exists(path):  # False for names that cannot be
                break
        else:
            if name == "stdlib" or name.startswith("stdlib/"):
                return  # the standard library is there anyhow
            checked = ", ".join(str(base / name) for base in dict.fromkeys((folder, self.root)))
            raise Fault(f"there is no file '{name}' to import", wanted.span, f"looked for {checked}")
        if path.is_dir():
            self._check(path, wanted)
            for entry in sorted(path.iterdir()):
                if entry.name.endswith(KINDS) and entry.is_file():
                    self._file(entry, wanted)
        else:
            self._file(path, wanted)

    def _file(self, path: Path, wanted: ast.Import) -> None:
        if not path.name.endswith(KINDS):
            raise Fault(
                f"'{path.name}' is of no kind that can be imported",
                wanted.span,
                "scripts .bt, headers .h, C sources for BPF .bpf.c",
            )
        resolved = path.resolve()
        if resolved in self.seen:
            return
        self.seen.add(resolved)
        self._check(path, wanted)
        self._check(resolved.parent, wanted)
        try:
            raw = resolved.read_bytes()[: MAX_FILE + 1]
        except OSError as e:
            raise Fault(f"cannot read the import '{path}': {e.strerror}", wanted.span) from None
        text = raw.decode("utf-8", "surrogateescape")
        if path.suffix == ".c":
            self.c_files.append(ast.CFile(str(resolved), text, wanted.span))
            return
        number = len(self.sources)
        if path.suffix == ".h":
            self.sources.append(Source(text, str(path)))
            self.headers.append(ast.CText(text, ast.Span(0, len(text), number)))
            return
        try:
            script = parse(text, str(path), number=number)
        except DslError as e:
            first = e.diagnostics[0]
            note = (*first.trail, ("imported from here", wanted.span))
            sources = [*self.sources, script_source(e)]
            raise DslError([Diagnostic("error", first.message, first.span, first.hint, note)], sources) from None
        self.sources.append(script.sources[0])
        if script.config:
            raise Fault("a config block cannot be imported", script.config[0].span, "put it into the main script")
        for inner in script.imports:
            self.add(inner, resolved.parent)
        self.scripts.append(script)

    def _check(self, path: Path, wanted: ast.Import) -> None:
        try:
            mode = path.stat().st_mode
        except OSError as e:
            raise Fault(f"cannot read the import '{path}': {e.strerror}", wanted.span) from None
        if mode & stat.S_IWOTH:
            raise Fault(f"'{path}' is not imported because everybody may write to it", wanted.span, f"chmod o-w {path}")


def script_source(error: DslError) -> Source:
    return error.sources[-1]
