"""From the script as parsed to the script as checked: parameters, C constants and macros are replaced.

What is left for the checker: `comptime` (it needs types), and `unroll` with a count that is no literal.

Every node of a macro's body carries the call it came from in `span.via`, so that a message shows both places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bpfseal.dsl import ast, points
from bpfseal.dsl.expand_macros import ConstantFrame, Frame, Macros, bind, member_path, replaced_type
from bpfseal.dsl.expand_params import Fault, Parameters
from bpfseal.dsl.expand_stdlib import INDEX, load
from bpfseal.dsl.expand_tree import MAX_HEIGHT, MAX_SIZE, measure, rebuild
from bpfseal.dsl.node import Node
from bpfseal.dsl.parse import parse_expression
from bpfseal.dsl.parse_build import settle
from bpfseal.dsl.source import Diagnostic, DslError, Source, Span

MAX_UNROLL = 100
MAX_EXPANSIONS = 20_000


def expand(
    script: ast.Script,
    *,
    params: Sequence[str] = (),
    named: Mapping[str, str | None] | None = None,
    imports_from: Path | None = None,
    defines: Mapping[str, tuple[str, Span]] | None = None,
) -> ast.Script:
    """`script` without imports, macros, parameters and C constants; `front.front` does this and what goes before it.

    params        positional parameters; `expand_params.split_arguments` divides a command line
    named         named parameters, None for one without a value
    imports_from  folder of the script, the current one when None
    defines       object-like C macros: text and where it stands, from `cdefs.read`

    Raises DslError for mistakes in the script, UsageError for named parameters it does not take.
    """
    if script.imports:
        from bpfseal.dsl.expand_imports import merge_imports

        script = merge_imports(script, imports_from or Path())
    work = _Expansion(script, params, named or {}, defines or {})
    try:
        return work.run()
    except Fault as fault:
        raise DslError([fault.diagnostic], work.sources) from None
    except RecursionError:
        whole = script.probes[0].span if script.probes else Span(0, 0)
        raise DslError([Diagnostic("error", "nested too deeply", whole)], work.sources) from None


class _Expansion:
    def __init__(
        self,
        script: ast.Script,
        params: Sequence[str],
        named: Mapping[str, str | None],
        defines: Mapping[str, tuple[str, Span]],
    ) -> None:
        self.script = script
        self.sources: list[Source] = list(script.sources)
        self.params = Parameters(params, named)
        self.defines = defines
        self.macros = Macros()
        self.loaded: set[str] = set()
        self.expansions = 0
        self.defining: list[str] = []

    def run(self) -> ast.Script:
        script = self.script
        for macro in script.macros:
            self.macros.add(macro)
        functions = tuple(self.function(f) for f in script.functions)
        probes = tuple(self.probe(p) for p in script.probes)
        known: dict[int, tuple[int, int]] = {}
        size = 0
        wholes: list[ast.Function | ast.Probe] = [*functions, *probes]
        for whole in wholes:
            height, count = measure(whole, known)
            size += count
            if height > MAX_HEIGHT:
                raise Fault("macros and blocks are nested too deeply here", whole.span)
            if size > MAX_SIZE:
                raise Fault(f"macros and unrolled loops make this longer than {MAX_SIZE} nodes", whole.span)
        self.params.check_named()
        return ast.Script(
            sources=tuple(self.sources),
            preamble=script.preamble,
            config=script.config,
            maps=script.maps,
            functions=functions,
            probes=probes,
            warnings=(*script.warnings, *self.params.warnings),
            options=tuple(self.params.options.values()),
            c_files=script.c_files,
        )

    def function(self, function: ast.Function) -> ast.Function:
        visit = self.visitor(None)
        params = tuple((name, visit(type)) for name, type in function.params)
        return ast.Function(function.name, params, visit(function.returns), visit(function.body), function.span)

    def probe(self, probe: ast.Probe) -> ast.Probe:
        visit = self.visitor(None)
        attach = []
        for point in probe.points:
            try:
                text = points.substitute(point.text, self.params.positional)
            except points.PointError as e:
                raise Fault(e.message, point.span, e.hint) from None
            attach.append(point if text == point.text else ast.AttachPoint(text, point.span))
        predicate = visit(probe.predicate) if probe.predicate is not None else None
        return ast.Probe(tuple(attach), predicate, visit(probe.body), probe.span, probe.name)

    # --- nodes ------------------------------------------------------------------------------------------------------

    def visitor(self, frame: Frame | None) -> Callable[[Any], Any]:
        """A function that expands a node of the text that `frame` belongs to."""

        def visit(node: Any) -> Any:
            special = _SPECIAL.get(type(node))
            if special is not None:
                return special(self, node, frame, visit)
            return rebuild(node, visit, frame.span(node.span) if frame else None)

        return visit

    def plain(self, node: Any, frame: Frame | None, visit: Callable[[Any], Any]) -> Any:
        return rebuild(node, visit, frame.span(node.span) if frame else None)

    def identifier(self, node: ast.Identifier, frame: Frame | None, visit: Callable[[Any], Any]) -> Any:
        name = node.name
        if frame is not None and name in frame.values:
            passed = frame.values[name]
            if isinstance(passed, ast.TypeOf | ast.TypeName):
                raise Fault(f"'{name}' was passed a type, and stands where a value is needed", frame.span(node.span))
            return passed
        span = frame.span(node.span) if frame else node.span
        macro = self.macro(name, (), frame, span, bare=True)
        if macro is not None:
            return self.body(macro, (), frame, span)
        if name in self.defines:
            return self.define(name, span)
        if name.startswith("__builtin_"):
            return ast.Identifier(name[len("__builtin_") :], span)
        return ast.Identifier(name, span) if frame else node

    def call(self, node: ast.Call, frame: Frame | None, visit: Callable[[Any], Any]) -> Any:
        if node.name == "str":
            node = self.params.in_str(node)
        span = frame.span(node.span) if frame else node.span
        args = tuple(visit(arg) for arg in node.args)
        macro = self.macro(node.name, args, frame, span)
        if macro is not None:
            return self.body(macro, args, frame, span)
        name = node.name.removeprefix("__builtin_")
        if name == "getopt":
            return self.params.getopt(ast.Call(name, args, span), span)
        name_span = frame.span(node.name_span) if frame else node.name_span
        return ast.Call(name, args, span, name_span, node.bang)

    def macro(
        self, name: str, args: Sequence[Any], frame: Frame | None, span: Span, bare: bool = False
    ) -> ast.Macro | None:
        """The macro that a word or call means; None when it is no macro's business."""
        if name in INDEX and INDEX[name] not in self.loaded:
            self.loaded.add(INDEX[name])
            library = load(INDEX[name], len(self.sources))
            self.sources.append(library.sources[0])
            for macro in library.macros:
                self.macros.add(macro)
        if name not in self.macros.by_name:
            return None
        within_library = frame is not None and frame.macro.stdlib
        found = self.macros.find(name, args, within_library)
        if found is not None:
            return found
        candidates = self.macros.by_name[name]
        if bare and (name in self.defines or all(m.stdlib for m in candidates)):
            return None  # a word may mean much else
        if not any(m.stdlib or not within_library for m in candidates) or self.known_otherwise(name):
            return None
        raise self.macros.mismatch(name, args, span)

    def known_otherwise(self, name: str) -> bool:
        """Whether a builtin or function has this name too, and a call that fits no macro is its."""
        from bpfseal.dsl import table

        return name in table.FUNCTIONS or name in table.BUILTINS or name in table.AGGREGATES

    def body(self, macro: ast.Macro, args: Sequence[Any], outer: Frame | None, span: Span) -> ast.Block:
        """The body of `macro` for one call at `span`."""
        chain = []
        at = outer
        while at is not None:
            chain.append(at.macro.name)
            if at.macro is macro:
                names = " > ".join([*reversed(chain), macro.name])
                raise Fault(f"macro '{macro.name}' calls itself: {names}", span)
            at = at.outer
        self.expansions += 1
        if self.expansions > MAX_EXPANSIONS:
            raise Fault(f"the script expands more than {MAX_EXPANSIONS} macros", span)
        frame = Frame(macro, span, self.expansions, outer)
        bind(frame, args)
        block: ast.Block = self.visitor(frame)(macro.body)
        return block

    def define(self, name: str, span: Span) -> Any:
        """A C constant's text as an expression."""
        text, place = self.defines[name]
        if name in self.defining:
            raise Fault(f"#define {name} refers to itself: {' > '.join([*self.defining, name])}", span)
        try:
            value = parse_expression(self.sources[place.source], place)
        except DslError as e:
            raise Fault(
                f"#define {name} is no expression: '{text}'", span, trail=(("it is defined here", place),)
            ) from e
        self.defining.append(name)
        try:
            return self.visitor(ConstantFrame(name, span))(value)
        finally:
            self.defining.pop()

    def variable(self, node: ast.Variable, frame: Frame | None, visit: Callable[[Any], Any]) -> ast.Variable:
        if frame is None:
            return node
        return ast.Variable(frame.variable(node.name), frame.span(node.span))

    def let(self, node: ast.Let, frame: Frame | None, visit: Callable[[Any], Any]) -> ast.Let:
        type_name = visit(node.type) if node.type is not None else None
        value = visit(node.value) if node.value is not None else None
        if frame is None:
            return ast.Let(node.name, type_name, value, node.span)
        span = frame.span(node.span)
        if node.name in frame.variables:
            raise Fault(f"'let' hides the parameter ${node.name} of macro '{frame.macro.name}'", span)
        return ast.Let(frame.variable(node.name), type_name, value, span)

    def map(self, node: ast.Map, frame: Frame | None, visit: Callable[[Any], Any]) -> ast.Map:
        key = visit(node.key) if node.key is not None else None
        if frame is None:
            return node if key is node.key else ast.Map(node.name, key, node.span)
        return ast.Map(frame.map(node.name, node.span), key, frame.span(node.span))

    def positional(self, node: ast.Positional, frame: Frame | None, visit: Callable[[Any], Any]) -> ast.Expr:
        return self.params.value(node, frame.span(node.span) if frame else node.span)

    def type_name(self, node: ast.TypeName, frame: Frame | None, visit: Callable[[Any], Any]) -> Any:
        if frame is None:
            return node
        return replaced_type(frame, node, frame.span)

    def type_of(self, node: ast.TypeOf, frame: Frame | None, visit: Callable[[Any], Any]) -> ast.TypeOf:
        """`typeof(x)` where x was passed `typeof(…)` is just that."""
        operand = visit(node.operand)
        span = frame.span(node.span) if frame else node.span
        if isinstance(operand, ast.TypeOf):
            return ast.TypeOf(operand.operand, span, operand.suffixes + node.suffixes)
        return ast.TypeOf(operand, span, node.suffixes)

    def offset_of(self, node: ast.OffsetOf, frame: Frame | None, visit: Callable[[Any], Any]) -> ast.OffsetOf:
        path = node.path
        if frame is not None and len(path) == 1 and path[0] in frame.values:
            passed = member_path(frame.values[path[0]])
            if passed is None:
                raise Fault(
                    f"what is passed for '{path[0]}' is no path of members",
                    frame.span(node.span),
                    "pass plain words: a.b.c",
                )
            path = passed
        return ast.OffsetOf(visit(node.operand), path, frame.span(node.span) if frame else node.span)

    def statement(self, node: ast.ExprStatement, frame: Frame | None, visit: Callable[[Any], Any]) -> Any:
        """A macro that is called for its effect becomes a block."""
        expr = visit(node.expr)
        if isinstance(expr, ast.Block):
            return settle(expr)
        if frame is None and expr is node.expr:
            return node
        return ast.ExprStatement(expr, frame.span(node.span) if frame else node.span)

    def unroll(self, node: ast.Unroll, frame: Frame | None, visit: Callable[[Any], Any]) -> Any:
        count, body = visit(node.count), visit(node.body)
        span = frame.span(node.span) if frame else node.span
        if isinstance(count, ast.Integer) and 1 <= count.value <= MAX_UNROLL:
            return ast.Block((body,) * count.value, None, span)
        return ast.Unroll(count, body, span)


_SPECIAL: dict[type[Node], Callable[..., Any]] = {
    ast.Identifier: _Expansion.identifier,
    ast.Call: _Expansion.call,
    ast.Variable: _Expansion.variable,
    ast.Let: _Expansion.let,
    ast.Map: _Expansion.map,
    ast.Positional: _Expansion.positional,
    ast.TypeName: _Expansion.type_name,
    ast.TypeOf: _Expansion.type_of,
    ast.OffsetOf: _Expansion.offset_of,
    ast.ExprStatement: _Expansion.statement,
    ast.Unroll: _Expansion.unroll,
}
