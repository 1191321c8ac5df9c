"""The one table of builtins, functions and config variables.

Documentation, completion, checks and the code generator's contract are all read from here: `BUILTINS` for values
named by a bare word, `FUNCTIONS` for calls, `AGGREGATES` for calls that are assigned to maps, `CONFIG` for the
variables of a config block. The rows are in `table_builtins`, `table_functions` and `table_config`.
"""

from __future__ import annotations

from bpfseal.dsl.table_builtins import BUILTINS
from bpfseal.dsl.table_config import CONFIG, ENVIRONMENT_ONLY, OBSOLETE, RENAMED
from bpfseal.dsl.table_functions import AGGREGATES, FUNCTIONS
from bpfseal.dsl.table_types import BuiltinSpec, ConfigSpec, FunctionSpec

__all__ = [
    "AGGREGATES",
    "BUILTINS",
    "CONFIG",
    "ENVIRONMENT_ONLY",
    "FUNCTIONS",
    "OBSOLETE",
    "RENAMED",
    "BuiltinSpec",
    "ConfigSpec",
    "FunctionSpec",
    "names",
    "near",
]


def names() -> list[str]:
    """Every bare word and function name, sorted: what completion offers."""
    return sorted({*BUILTINS, *FUNCTIONS, *AGGREGATES})


def near(name: str, among: list[str] | tuple[str, ...], count: int = 3) -> list[str]:
    """Names of `among` that `name` may have meant, best first."""
    from difflib import get_close_matches

    return get_close_matches(name, sorted(set(among)), n=count, cutoff=0.6)
