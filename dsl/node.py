"""The base of the syntax tree's classes: frozen values.

All values of this package are msgspec's: a class is made in a tenth of a millisecond, a dataclass in one or two, and
there are a hundred and fifty of them between a script and its program.
"""

from __future__ import annotations

from msgspec import Struct


class Node(Struct, frozen=True):
    """`__struct_fields__` and `__struct_fields__` are the names of the fields."""
