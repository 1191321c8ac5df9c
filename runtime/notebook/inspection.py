"""Help on the name under the cursor of a cell (Shift-Tab in JupyterLab): of the language, where the cell is in it."""

from __future__ import annotations

import re
from typing import Any

from bpfseal.errors import BpfsealError
from bpfseal.runtime.notebook.completion import within

_BEFORE, _BEHIND = re.compile(r"\w*\Z"), re.compile(r"\w*")
_CALL = re.compile(r"(\w+)\s*\([^()]*\Z")


def help_at(code: str, cursor: int) -> Any:
    """The `Help` of the name at `cursor`, or else of the call whose arguments it is among; None where there is none."""
    if not within(code[:cursor]):
        return None
    from bpfseal.runtime.notebook.reference import Help

    before, behind = _BEFORE.search(code, 0, cursor), _BEHIND.match(code, cursor)
    names = [(before[0] if before else "") + (behind[0] if behind else "")]
    names += [call[1]] if (call := _CALL.search(code[:cursor])) else []
    for name in names:
        try:
            return Help.of(name)
        except BpfsealError:
            continue
    return None


def install(shell: Any) -> None:
    """IPython's kernel has no hook for this: it is asked before the kernel's own answer."""
    kernel = getattr(shell, "kernel", None)
    if kernel is None:
        return
    usual = kernel.do_inspect

    def do_inspect(code: str, cursor_pos: int, *arguments: Any, **more: Any) -> Any:
        found = help_at(code, cursor_pos)
        if found is None:
            return usual(code, cursor_pos, *arguments, **more)
        data = {"text/plain": repr(found), "text/html": found._repr_html_()}
        return {"status": "ok", "found": True, "data": data, "metadata": {}}

    kernel.do_inspect = do_inspect


def remove(shell: Any) -> None:
    vars(getattr(shell, "kernel", None) or shell).pop("do_inspect", None)
