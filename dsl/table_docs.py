"""The parts of docs/language.md that are the table, as Markdown.

`python -m bpfseal.dsl.table_docs docs/language.md` puts them between their marks.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from bpfseal.dsl.table import AGGREGATES, BUILTINS, CONFIG, FUNCTIONS
from bpfseal.dsl.table_types import BuiltinSpec, ConfigSpec, FunctionSpec

__all__ = ["FunctionSpec", "main", "sections"]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join([_row(*head), _row(*("---" for _ in head)), *(_row(*row) for row in rows)])


def _builtin_row(spec: BuiltinSpec) -> tuple[str, ...]:
    type = str(spec.type) if spec.type is not None else ""
    probes = ", ".join(sorted(spec.probes))
    return (f"`{spec.name}`", f"`{type}`" if type else "", spec.doc + (f" In {probes}." if probes else ""))


def _builtins() -> str:
    rows = [_builtin_row(spec) for name, spec in sorted(BUILTINS.items()) if not re.fullmatch(r"arg\d+", name)]
    argument = BUILTINS["arg0"]
    rows.append(
        (
            "`arg0` … `arg11`",
            f"`{argument.type}`",
            "Arguments of the traced function as passed in registers; six of them on x86-64, more in usdt probes. In "
            + ", ".join(sorted(argument.probes))
            + ".",
        )
    )
    return _table(("Name", "Type", ""), rows)


def _function_row(spec: FunctionSpec) -> tuple[str, ...]:
    marks = []
    if spec.mode == "async":
        marks.append("Asynchronous.")
    elif spec.mode == "compile":
        marks.append("At compile time.")
    if spec.unsafe:
        marks.append("Needs `--unsafe`.")
    if spec.probes:
        marks.append("In " + ", ".join(sorted(spec.probes)) + ".")
    return ("<br>".join(f"`{s}`" for s in spec.signatures), " ".join([spec.doc, *marks]))


def _functions(specs: Iterable[FunctionSpec]) -> str:
    return _table(("Function", ""), (_function_row(s) for s in sorted(specs, key=lambda s: s.name)))


def _config_row(spec: ConfigSpec) -> tuple[str, ...]:
    default = f'"{spec.default}"' if spec.kind == "string" else str(spec.default).lower()
    if spec.exact:
        default = str(spec.default)
    values = ", ".join(f"`{c}`" for c in spec.choices)
    return (f"`{spec.name}`", f"`{default}`", spec.doc + (f" Values: {values}." if values else ""))


def _config() -> str:
    return _table(("Variable", "Default", ""), (_config_row(spec) for _, spec in sorted(CONFIG.items())))


def sections() -> dict[str, str]:
    """Text of each generated part by its name."""
    return {
        "builtins": _builtins(),
        "functions": _functions(FUNCTIONS.values()),
        "aggregations": _functions(AGGREGATES.values()),
        "config": _config(),
    }


def fill(text: str) -> str:
    """`text` with everything between the marks `<!-- table: NAME -->` and `<!-- end -->` renewed."""
    for name, section in sections().items():
        pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda match, section=section: f"{match[1]}{section}\n{match[2]}", text)  # type: ignore[misc]
    return text


def main(path: Path) -> None:
    path.write_text(fill(path.read_text()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
