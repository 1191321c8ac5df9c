"""What a program tells about its own troubles while it runs: a failed helper, a division by zero.

The sentences are the ones that bpftrace's users search for.
"""

from __future__ import annotations

import errno
import os

import msgspec

_SENTENCES = {
    "divide_by_zero": (
        "Divide or modulo by 0 detected. This can lead to unexpected results. 1 is being used as the result."
    ),
    "array_bounds": (
        "Array access out of bounds. This can lead to unexpected results. The default value of the array type is being "
        "used as the result."
    ),
    "kstack": "Unable to get the kernel stack; the stack map may be full or have had a collision.",
    "ustack": "Unable to get the user stack; the stack map may be full or have had a collision.",
    "dw_ustack": ("No DWARF unwind data available for this process. Use -p or --dwarf-pid to specify target PIDs."),
}
_MAP_FULL = (
    "Map full; can't update element. Try increasing max_map_keys config or manually setting the max entries in a map "
    "declaration e.g. `let @a = hash(5000)`"
)


class Trouble(msgspec.Struct, frozen=True):
    """`kind` as in EventLayout.options; `helper` and its result `code` (negative errno) where a helper failed; `where`
    is the place in the script, `source` its text if that is known, for context."""

    kind: str
    where: str
    helper: str = ""
    code: int = 0
    source: str = ""

    @property
    def reason(self) -> str:
        """The error's own name, or the sentence of the kind."""
        if self.kind == "helper":
            return os.strerror(-self.code) if self.code < 0 else "Success"
        return _SENTENCES.get(self.kind, self.kind)

    def text(self) -> str:
        """For people: what happened, to which helper, and the place in the script marked; ends with a newline."""
        sentence = self.reason
        if self.kind == "helper":
            sentence = f"{_helper_sentence(self)}\nAdditional Info - helper: {self.helper}, retcode: {self.code}"
        return f"{self.where}: WARNING: {sentence}\n{context(self.source, self.where)}"


def _helper_sentence(trouble: Trouble) -> str:
    match trouble.helper:
        case "map_update_elem" if trouble.code == -errno.E2BIG:
            return _MAP_FULL
        case "map_delete_elem" if trouble.code == -errno.ENOENT:
            return "Can't delete map element because it does not exist."
        case "map_lookup_elem":
            return "Can't lookup map element because it does not exist."
    return trouble.reason


def place(where: str) -> tuple[str, int, int, int]:
    """(file, line, first column, column behind the end; 0 when unknown) of EventLayout.where."""
    name, line, columns = [*where.rsplit(":", 2), "0", "0"][:3]
    first, _, last = columns.partition("-")
    return name, int(line or 0), int(first or 0), int(last or 0)


def context(source: str, where: str) -> str:
    """The script's line with the place underlined, two lines; empty when it is not there."""
    _, line, first, last = place(where)
    lines = source.split("\n")
    if not source or not 0 < line <= len(lines) or not first:
        return ""
    shown = lines[line - 1]
    if first > len(shown):
        return ""
    lead = "".join("\t" if c == "\t" else " " for c in shown[: first - 1])
    return f"{shown}\n{lead}{'~' * max(1, last - first)}\n"
