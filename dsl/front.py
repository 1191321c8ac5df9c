"""The whole front end: text to a script that the checker takes, and the environment to check it in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from bpfseal.dsl import ast
from bpfseal.dsl.env import Environment
from bpfseal.dsl.expand import expand
from bpfseal.dsl.parse import parse
from bpfseal.dsl.source import Span


def front(
    text: str,
    name: str,
    environment: Environment,
    *,
    params: Sequence[str] = (),
    named: Mapping[str, str | None] | None = None,
    folder: Path | None = None,
    include_folders: Sequence[Path] = (),
    includes: Sequence[str] = (),
) -> tuple[ast.Script, Environment]:
    """Parses, imports, reads C and expands; returns `environment` with the script's own types in front.

    name             of the text in messages: a file name, "stdin"
    params, named    parameters of the script, from `expand_params.split_arguments`
    folder           of the script, for imports and quoted includes; the current one when None
    include_folders  where headers are looked for first (-I)
    includes         headers that the script includes without saying so (--include)

    Raises DslError, which renders with carets, and UsageError for parameters that the script does not take.
    """
    script = parse(text, name)
    folder = folder or Path()
    if script.imports:
        from bpfseal.dsl.expand_imports import merge_imports

        script = merge_imports(script, folder)
    defines: dict[str, tuple[str, Span]] = {}
    if script.preamble or includes:
        from bpfseal.dsl import cdefs

        definitions = cdefs.read(
            script.preamble,
            script.sources,
            environment,
            folders=include_folders,
            script_folder=folder,
            includes=includes,
        )
        script = replace(script, sources=tuple(definitions.sources))
        environment = definitions.over(environment)
        defines = definitions.defines()
    return expand(script, params=params, named=named, defines=defines), environment
