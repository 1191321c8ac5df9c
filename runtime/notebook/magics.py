"""`%bpfseal` and `%%bpfseal`."""

from __future__ import annotations

import argparse
import hashlib
from typing import TYPE_CHECKING, Any

from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand
from IPython.core.magic_arguments import argument, magic_arguments

from bpfseal.errors import BpfsealError, UsageError
from bpfseal.runtime.notebook import arguments

if TYPE_CHECKING:
    from bpfseal.runtime.notebook.run import Run

LAST = "_trace"
"""The variable that always holds the last trace."""


# Names and settings of each option, in the order of the help.
_OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("--name",), {"type": arguments.name, "help": "keep the trace in this variable; the same name replaces it"}),
    (
        ("--for",),
        {"dest": "seconds", "metavar": "TIME", "type": arguments.duration, "help": "trace so long: 5s, 250ms, 2m"},
    ),
    (("--until-interrupt",), {"action": "store_true", "help": "until exit() or the stop button (the default)"}),
    (("--background",), {"action": "store_true", "help": "go on with the notebook; .stop() ends the trace"}),
    (("--live",), {"action": "store_true", "help": "show the data while it comes, in place"}),
    (
        ("--every",),
        {"metavar": "TIME", "type": arguments.duration, "default": 0.5, "help": "how often --live draws (500ms)"},
    ),
    (("--pid",), {"type": int, "default": 0, "help": "trace this process only; the trace ends with it"}),
    (("--cmd",), {"help": "run this command and trace it; the trace ends with it"}),
    (("--signing",), {"choices": ("auto", "require", "off"), "default": "auto", "help": "as on the command line"}),
    (("--policy",), {"help": "policy of the private helper"}),
    (("--unsafe",), {"action": "store_true", "help": "allow system(), signal(), override() and writes to memory"}),
    (("--keep",), {"type": int, "metavar": "N", "default": 2_000_000, "help": "keep the newest N events"}),
    (("-l", "--list"), {"nargs": "?", "const": "*", "metavar": "PATTERN", "help": "list probes"}),
    (("-v", "--verbose"), {"action": "store_true", "help": "with -l: their arguments too"}),
    (("--doc",), {"metavar": "NAME", "help": "what a function, builtin or config variable does"}),
    (("--stop",), {"action": "store_true", "help": "stop all traces of this notebook"}),
)


def _magic(function: Any) -> Any:
    """A line and cell magic with _OPTIONS, whose line IPython leaves as it is: {…} and $… are the program's."""
    for names, settings in reversed(_OPTIONS):
        function = argument(*names, **settings)(function)
    return line_cell_magic("bpfseal")(no_var_expand(magic_arguments()(function)))


class BpfsealMagics(Magics):  # type: ignore[misc]
    """The magics, and the traces that were started by them: `runs` by name."""

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self.runs: dict[str, Run] = {}

    @_magic
    def bpfseal(self, line: str, cell: str | None = None) -> Any:
        """Trace this system with a bpftrace-style program, signed on the fly.

        `%bpfseal --for 2s PROGRAM` in a line, or the program in a cell under `%%bpfseal [options]`. The value is the
        trace: `t.events` and `t["@map"]` are pandas frames, `t.stop()` ends it. `${expression}` in the program stands
        for the value of a Python int, bool or string as one literal.
        """
        try:
            return self._bpfseal(line, cell)
        except BpfsealError as error:
            from bpfseal.runtime.notebook import trouble

            error = trouble.explained(error)
            failed = trouble.TraceFailed(error, shown=self._show(error))
        raise failed

    def _bpfseal(self, line: str, cell: str | None) -> Any:
        words, rest = arguments.split(line, parser())
        options = arguments.parse(words, parser())
        if cell is not None and rest:
            raise UsageError(f"what is {rest.split()[0]!r}? The program goes into the lines below %%bpfseal")
        if options.stop:
            self.close()
            return None
        if options.list is not None:
            return self._list(options.list, options)
        if options.doc is not None:
            from bpfseal.runtime.notebook.reference import Help

            return Help.of(options.doc)
        return self._trace(cell if cell is not None else rest, options)

    def _list(self, pattern: str, options: argparse.Namespace) -> Any:
        from bpfseal.runtime.listing import list_probes
        from bpfseal.runtime.notebook.reference import Listing

        lines: list[str] = []
        for one in pattern.split(","):
            lines += list_probes(one.strip(), verbose=options.verbose, pid=options.pid)
        return Listing(lines)

    def _trace(self, program: str, options: argparse.Namespace) -> Any:
        from bpfseal.runtime.build import Request
        from bpfseal.runtime.notebook.interpolate import interpolate
        from bpfseal.runtime.notebook.run import Run
        from bpfseal.runtime.sealing import Signing

        if not program.strip():
            raise UsageError("there is no program to trace with", hint="%bpfseal? shows how")
        if options.background and options.live:
            raise UsageError("--live waits for the trace: it does not go with --background")
        if options.until_interrupt and options.seconds:
            raise UsageError("--until-interrupt and --for contradict each other")
        program = interpolate(program, lambda expression: eval(expression, self.shell.user_ns))
        name = options.name or self._cell_name(program)
        previous = self.runs.pop(name, None)
        if previous is not None:
            previous.stop()
        request = Request(text=program, name="cell", pid=options.pid, command=options.cmd, unsafe=options.unsafe)
        signing = Signing(options.signing, options.policy, 0, options.unsafe)
        run = Run(request, signing, name=options.name or "trace", seconds=options.seconds or 0.0, limit=options.keep)
        self._forget()
        self.runs[name] = run
        self.shell.user_ns[LAST] = run
        if options.name:
            self.shell.user_ns[options.name] = run
        try:
            run.start()
            if options.background:
                return run
            from bpfseal.runtime.notebook import live

            if options.live:
                live.show(run, options.every)
                return None
            return live.follow(run)
        except KeyboardInterrupt:
            # Wherever it comes, nothing goes on behind the cell's back.
            run.interrupt()
            return run
        except BaseException:
            self.runs.pop(name, None)
            raise

    def _cell_name(self, program: str) -> str:
        """What a trace without a name is known by: its cell, where the front end says which, so that running the cell
        again replaces the trace; else the program."""
        parent: Any = getattr(self.shell, "get_parent", dict)()
        cell = parent.get("metadata", {}).get("cellId") if isinstance(parent, dict) else None
        return f"cell {cell}" if cell else "program " + hashlib.sha256(program.encode("utf-8", "replace")).hexdigest()

    def _forget(self) -> None:
        """Traces that have ended need not be stopped any more; whoever wants their data has them in a variable."""
        self.runs = {name: run for name, run in self.runs.items() if run.running}

    def close(self) -> None:
        """Stop every trace."""
        for run in self.runs.values():
            run.stop()
        self._forget()

    def _show(self, error: BpfsealError) -> bool:
        """The error as HTML where there is a front end for it; whether there is."""
        if not hasattr(self.shell, "kernel"):
            return False
        from IPython.display import display

        from bpfseal.runtime.notebook import trouble

        display({"text/plain": trouble.text(error), "text/html": trouble.html(error)}, raw=True)
        return True


def parser() -> argparse.ArgumentParser:
    """The magic's argument parser."""
    made: argparse.ArgumentParser = BpfsealMagics.bpfseal.parser
    return made


# As a call, since a decorator without types would take the class's own types away.
magics_class(BpfsealMagics)
