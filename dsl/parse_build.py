"""Grammar rules to syntax tree: a method per rule of grammar.lark, named like it.

Each gets its kept children and the offsets where the rule's text starts and ends. What a rule cannot say (targets of
assignments, order of the sections, literals) is checked here and raises DslError.
"""

from __future__ import annotations

from typing import Any

from bpfseal.dsl import ast
from bpfseal.dsl.node import Node
from bpfseal.dsl.parse_lex import NUMBERED, Token
from bpfseal.dsl.parse_literals import LiteralError, decode_integer, decode_string
from bpfseal.dsl.source import Diagnostic, DslError, Source, Span


class _If(Node, frozen=True):
    """An `if` before it is known whether its value is used."""

    condition: ast.Expr
    then: ast.Block
    otherwise: ast.Block | _If | None
    span: Span


class _Ended(Node, frozen=True):
    """A statement with its semicolon."""

    statement: Any


class _Config(Node, frozen=True):
    entries: tuple[ast.ConfigEntry, ...]
    span: Span


# Values that the language knows without the standard library.
NO_PARAMETER = frozenset(("args", "ctx", "pid", "tid", "nsecs", "kstack", "ustack"))


class Builder:
    """Builds the tree of `source`, the script's source number `number`."""

    def __init__(self, source: Source, number: int) -> None:
        self.source = source
        self.number = number
        self.imports: list[ast.Import] = []

    def span(self, start: int, end: int) -> Span:
        return Span(start, end, self.number)

    def error(self, message: str, start: int, end: int, hint: str | None = None) -> DslError:
        # spans of one parse point into a list of sources that is padded up to its number
        sources = [Source("", "")] * self.number + [self.source]
        return DslError([Diagnostic("error", message, self.span(start, end), hint)], sources)

    def at(self, message: str, node: Any, hint: str | None = None) -> DslError:
        return self.error(message, node.span.start, node.span.end, hint)

    # --- top level --------------------------------------------------------------------------------------------------

    def start(self, c: list[Any], start: int, end: int) -> ast.Script:
        stage = 0
        config: _Config | None = None
        found: dict[type, list[Any]] = {}
        for item in c:
            kind = type(item)
            if kind is ast.CText:
                if stage > 0:
                    raise self.at("C definitions must appear before everything else in the script", item)
            elif kind is _Config or kind is ast.Import:
                what = "config" if kind is _Config else "import"
                if stage > 1:
                    raise self.at(f"{what} must appear before probes, macros and map declarations", item)
                stage = 1
                if kind is _Config:
                    if config is not None:
                        raise self.at("duplicate config block", item, "merge it with the first one")
                    config = item
            else:
                stage = 2
            found.setdefault(kind, []).append(item)
        return ast.Script(
            sources=(self.source,),
            preamble=tuple(found.get(ast.CText, ())),
            config=config.entries if config else (),
            imports=(*found.get(ast.Import, ()), *self.imports),
            maps=tuple(found.get(ast.MapDecl, ())),
            macros=tuple(found.get(ast.Macro, ())),
            functions=tuple(found.get(ast.Function, ())),
            probes=tuple(found.get(ast.Probe, ())),
        )

    def ctext(self, c: list[Any], start: int, end: int) -> ast.CText:
        return ast.CText(c[0].text, self.span(start, end))

    def config(self, c: list[Any], start: int, end: int) -> _Config:
        return _Config(tuple(c), self.span(start, end))

    def entry(self, c: list[Any], start: int, end: int) -> ast.ConfigEntry:
        name, token = c
        text = token.text
        value: str | int | bool
        if text[0] == '"':
            value = self.decoded(token).decode("utf-8", "surrogateescape")
        elif text[0].isdigit():
            value = self.number_of(token)
        elif text in ("true", "false"):
            value = text == "true"
        else:
            value = text
        return ast.ConfigEntry(name.text, value, self.span(start, end))

    # "import" is a word of Python
    def import_(self, c: list[Any], start: int, end: int) -> ast.Import:
        return ast.Import(self.decoded(c[0]).decode("utf-8", "surrogateescape"), self.span(start, end))

    def mapdecl(self, c: list[Any], start: int, end: int) -> ast.MapDecl:
        name = c[0].text[1:]
        if len(c) == 1:
            return ast.MapDecl(name, "", None, self.span(start, end))
        entries = self.number_of(c[2])
        if entries <= 0:
            raise self.error("a map needs room for at least one element", c[2].start, c[2].end)
        return ast.MapDecl(name, c[1].text, entries, self.span(start, end))

    def macro(self, c: list[Any], start: int, end: int) -> ast.Macro:
        name, *params, body = c
        seen = set()
        for param in params:
            if param.text in seen:
                raise self.error(f"macro parameter '{param.text}' is given twice", param.start, param.end)
            if param.text in NO_PARAMETER or NUMBERED.match(param.text):
                raise self.error(
                    f"'{param.text}' is a builtin and cannot name a macro parameter", param.start, param.end
                )
            if param.text == "@":
                raise self.error("a map parameter needs a name", param.start, param.end)
            seen.add(param.text)
        return ast.Macro(name.text, tuple(p.text for p in params), body, self.span(start, name.end))

    def function(self, c: list[Any], start: int, end: int) -> ast.Function:
        name, *params, returns, body = c
        names = [name for name, _ in params]
        for n in names:
            if names.count(n) > 1:
                raise self.error(f"parameter '${n}' is given twice", start, name.end)
        return ast.Function(name.text, tuple(params), returns, settle(body), self.span(start, name.end))

    def argument(self, c: list[Any], start: int, end: int) -> tuple[str, ast.TypeName | ast.TypeOf]:
        return c[0].text[1:], c[1]

    def probe(self, c: list[Any], start: int, end: int) -> ast.Probe:
        name = ""
        predicate = None
        points: list[ast.AttachPoint] = []
        for child in c[:-1]:
            if not isinstance(child, Token):
                predicate = child
            elif self.source.text[child.start : child.end] != child.text:  # `name =`
                name = child.text
            else:
                points.append(ast.AttachPoint(child.text, self.span(child.start, child.end)))
        span = self.span(start, points[-1].span.end)
        return ast.Probe(tuple(points), predicate, settle(c[-1]), span, name)

    def predicate(self, c: list[Any], start: int, end: int) -> ast.Expr:
        expr: ast.Expr = c[1]
        return expr

    # --- blocks and statements --------------------------------------------------------------------------------------

    def body(self, c: list[Any], start: int, end: int) -> ast.Block:
        statements: list[ast.Statement] = []
        result: ast.Expr | None = None
        # a brace token comes first where the lexer named it; semicolons are kept to see what they end
        items = [item for item in c if not (isinstance(item, Token) and item.text == "{")]
        for i, item in enumerate(items):
            if isinstance(item, Token) or item is None:
                continue
            last = i == len(items) - 1
            if type(item) is _Ended:
                statements.append(item.statement)
            elif type(item) is _If:
                value = self.valued(item) if last else None
                if value is not None:
                    result = value
                else:
                    statements.append(settled_if(item))
            elif type(item) is ast.Block:
                if last and item.result is not None:
                    result = item
                else:
                    statements.append(settle(item))
            elif type(item) is ast.ExprStatement and last:
                result = item.expr
            else:
                statements.append(item)
        return ast.Block(tuple(statements), result, self.span(start, end))

    block = nested = body

    def ended(self, c: list[Any], start: int, end: int) -> _Ended:
        return _Ended(c[0])

    def expression(self, c: list[Any], start: int, end: int) -> ast.ExprStatement:
        return ast.ExprStatement(c[0], self.span(start, end))

    def assign(self, c: list[Any], start: int, end: int) -> ast.Assign:
        target, op, value = c
        discard = isinstance(target, ast.Identifier) and target.name == "_" and op.text == "="
        if isinstance(target, ast.Member):
            raise self.at(
                "tuples, records and fields of structs cannot be changed",
                target,
                "create a new value and assign it instead",
            )
        if not isinstance(target, ast.Variable | ast.Map) and not discard:
            raise self.at("only a variable or a map can be assigned to", target, self.assign_hint(target))
        return ast.Assign(target, op.text, value, self.span(start, end))

    def assign_hint(self, target: ast.Expr) -> str | None:
        if isinstance(target, ast.Identifier):
            return f"variables start with a dollar: ${target.name}; maps with an at sign: @{target.name}"
        if isinstance(target, ast.Binary | ast.Ternary):
            return "to compare, use '=='"
        return None

    def let(self, c: list[Any], start: int, end: int) -> ast.Let:
        return ast.Let(c[0].text[1:], None, c[1] if len(c) > 1 else None, self.span(start, end))

    def typedlet(self, c: list[Any], start: int, end: int) -> ast.Let:
        return ast.Let(c[0].text[1:], c[1], c[2] if len(c) > 2 else None, self.span(start, end))

    def jump(self, c: list[Any], start: int, end: int) -> ast.Jump:
        return ast.Jump(c[0].text, c[1] if len(c) > 1 else None, self.span(start, end))

    def if_(self, c: list[Any], start: int, end: int) -> _If:
        # STATEMENTIF is a kept token, the "if" after an else is not
        condition, then, *otherwise = [item for item in c if not isinstance(item, Token)]
        return _If(self.condition(condition), then, otherwise[0] if otherwise else None, self.span(start, end))

    def ifexpr(self, c: list[Any], start: int, end: int) -> ast.IfExpr:
        raw = _If(self.condition(c[0]), c[1], c[2], self.span(start, end))
        return self.if_value(raw)

    def if_value(self, raw: _If) -> ast.IfExpr:
        otherwise = raw.otherwise
        if otherwise is None:
            raise self.at("an 'if' that is used as a value needs an 'else'", raw)
        if isinstance(otherwise, _If):
            nested = self.if_value(otherwise)
            otherwise = ast.Block((), nested, nested.span)
        return ast.IfExpr(raw.condition, raw.then, otherwise, raw.span)

    def valued(self, raw: _If) -> ast.IfExpr | None:
        """`raw` as an expression when every arm ends in a value."""
        at: ast.Block | _If | None = raw
        while isinstance(at, _If):
            if at.then.result is None:
                return None
            at = at.otherwise
        if at is None or at.result is None:
            return None
        return self.if_value(raw)

    def condition(self, expr: ast.Expr) -> ast.Expr:
        if isinstance(expr, ast.TupleExpr):
            hint = "to compare, use '=='" if expr.names else None
            raise self.at("a condition is one value, not a tuple or a record", expr, hint)
        return expr

    # "for" and "while" are words of Python
    def for_(self, c: list[Any], start: int, end: int) -> ast.ForMap | ast.ForRange:
        variable = ast.Variable(c[0].text[1:], self.span(c[0].start, c[0].end))
        span = self.span(start, end)
        body = settle(c[-1])
        if len(c) == 4:
            return ast.ForRange(variable, c[1], c[2], body, span)
        if not isinstance(c[1], ast.Map) or c[1].key is not None:
            raise self.at("expected a map or a range in the for loop", c[1], "for ($kv : @map) or for ($i : 0..10)")
        return ast.ForMap(variable, c[1], body, span)

    def while_(self, c: list[Any], start: int, end: int) -> ast.While:
        return ast.While(self.condition(c[0]), settle(c[1]), self.span(start, end))

    def unroll(self, c: list[Any], start: int, end: int) -> ast.Unroll:
        return ast.Unroll(c[0], settle(c[1]), self.span(start, end))

    def defer(self, c: list[Any], start: int, end: int) -> ast.Defer:
        mode = c[0].text if len(c) > 1 else "resume"
        if mode not in ("resume", "signal"):
            raise self.error(f"unknown mode '{mode}' of defer", c[0].start, c[0].end, "modes: resume, signal")
        return ast.Defer(mode, settle(c[-1]), self.span(start, end))

    def localimport(self, c: list[Any], start: int, end: int) -> None:
        self.imports.append(self.import_(c, start, end))

    # --- expressions ------------------------------------------------------------------------------------------------

    def ternary(self, c: list[Any], start: int, end: int) -> ast.Ternary:
        return ast.Ternary(c[0], c[1], c[2], self.span(start, end))

    def elvis(self, c: list[Any], start: int, end: int) -> ast.Ternary:
        return ast.Ternary(c[0], c[0], c[1], self.span(start, end))

    def binary(self, c: list[Any], start: int, end: int) -> ast.Binary:
        return ast.Binary(c[1].text, c[0], c[2], self.span(start, end))

    def prefix(self, c: list[Any], start: int, end: int) -> ast.Unary | ast.IncDec:
        op, operand = c[0].text, c[1]
        if op in ("++", "--"):
            return self.incdec(op, operand, True, start, end)
        return ast.Unary(op, operand, self.span(start, end))

    def postincrement(self, c: list[Any], start: int, end: int) -> ast.IncDec:
        return self.incdec(c[1].text, c[0], False, start, end)

    def incdec(self, op: str, target: Any, prefix: bool, start: int, end: int) -> ast.IncDec:
        if not isinstance(target, ast.Variable | ast.Map):
            raise self.at(f"'{op}' needs a variable or a map", target)
        return ast.IncDec(op, target, prefix, self.span(start, end))

    def cast(self, c: list[Any], start: int, end: int) -> ast.Cast:
        return ast.Cast(c[0], c[1], self.span(start, end))

    def comptime(self, c: list[Any], start: int, end: int) -> ast.Comptime:
        return ast.Comptime(c[0], self.span(start, end))

    def member(self, c: list[Any], start: int, end: int) -> ast.Member:
        name = c[1].text
        if name[0].isdigit():
            if isinstance(c[0], ast.Integer):
                raise self.error("floating point numbers are not supported", start, end)
            name = str(self.number_of(c[1]))
        return ast.Member(c[0], name, self.span(start, end))

    def arrow(self, c: list[Any], start: int, end: int) -> ast.Member:
        return ast.Member(c[0], c[1].text, self.span(start, end), True)

    def index(self, c: list[Any], start: int, end: int) -> ast.Index:
        return ast.Index(c[0], c[1], self.span(start, end))

    def integer(self, c: list[Any], start: int, end: int) -> ast.Integer:
        value = self.number_of(c[0])
        return ast.Integer(value, self.span(start, end), value >= 1 << 63, c[0].text)

    def string(self, c: list[Any], start: int, end: int) -> ast.String:
        return ast.String(self.decoded(c[0]), self.span(start, end))

    def boolean(self, c: list[Any], start: int, end: int) -> ast.Boolean:
        return ast.Boolean(c[0].text == "true", self.span(start, end))

    def identifier(self, c: list[Any], start: int, end: int) -> ast.Identifier:
        return ast.Identifier(c[0].text, self.span(start, end))

    def variable(self, c: list[Any], start: int, end: int) -> ast.Variable:
        return ast.Variable(c[0].text[1:], self.span(start, end))

    def positional(self, c: list[Any], start: int, end: int) -> ast.Positional:
        text = c[0].text[1:]
        if text == "#":
            return ast.Positional(0, self.span(start, end))
        if len(text) > 9 or int(text) == 0:
            raise self.error(f"there is no parameter ${text}", start, end, "the first parameter is $1")
        return ast.Positional(int(text), self.span(start, end))

    def map_(self, c: list[Any], start: int, end: int) -> ast.Map:
        span = self.span(start, end)
        name = c[0].text[1:]
        if len(c) < 2:
            return ast.Map(name, None, span)
        return ast.Map(name, c[1] if len(c) == 2 else ast.TupleExpr(tuple(c[1:]), (), span), span)

    def call(self, c: list[Any], start: int, end: int) -> ast.Call:
        return ast.Call(c[0].text, tuple(c[1:]), self.span(start, end), self.span(c[0].start, c[0].end))

    def bangcall(self, c: list[Any], start: int, end: int) -> ast.Call:
        return ast.Call(c[0].text, tuple(c[1:]), self.span(start, end), self.span(c[0].start, c[0].end), True)

    def group(self, c: list[Any], start: int, end: int) -> ast.Expr:
        expr: ast.Expr = c[0]
        return expr

    # "tuple" is a type of Python
    def tuple_(self, c: list[Any], start: int, end: int) -> ast.TupleExpr:
        return ast.TupleExpr(tuple(c), (), self.span(start, end))

    def record(self, c: list[Any], start: int, end: int) -> ast.TupleExpr:
        seen = set()
        for token, _ in c:
            if token.text in seen:
                raise self.error(f"the record names '{token.text}' twice", token.start, token.end)
            seen.add(token.text)
        return ast.TupleExpr(tuple(v for _, v in c), tuple(t.text for t, _ in c), self.span(start, end))

    def field(self, c: list[Any], start: int, end: int) -> tuple[Token, ast.Expr]:
        return c[0], c[1]

    def sizeof(self, c: list[Any], start: int, end: int) -> ast.SizeOf:
        return ast.SizeOf(c[0], self.span(start, end))

    def typeinfo(self, c: list[Any], start: int, end: int) -> ast.TypeInfo:
        return ast.TypeInfo(c[0], self.span(start, end))

    def offsetof(self, c: list[Any], start: int, end: int) -> ast.OffsetOf:
        return ast.OffsetOf(c[0], c[1], self.span(start, end))

    def path(self, c: list[Any], start: int, end: int) -> tuple[str, ...]:
        return tuple(token.text for token in c)

    # --- types ------------------------------------------------------------------------------------------------------

    def plaintype(self, c: list[Any], start: int, end: int) -> ast.TypeName:
        return ast.TypeName(c[0].text, tuple(c[1:]), self.span(start, end))

    def recordtype(self, c: list[Any], start: int, end: int) -> ast.TypeName:
        return ast.TypeName(f"{c[0].text} {c[1].text}", tuple(c[2:]), self.span(start, end))

    def typeof(self, c: list[Any], start: int, end: int) -> ast.TypeOf:
        return ast.TypeOf(c[0], self.span(start, end), tuple(c[1:]))

    def pointer(self, c: list[Any], start: int, end: int) -> str:
        return "*"

    def array(self, c: list[Any], start: int, end: int) -> int | None:
        return self.number_of(c[0]) if c else None

    # --- literals ---------------------------------------------------------------------------------------------------

    def number_of(self, token: Token) -> int:
        try:
            return decode_integer(token.text)
        except LiteralError as e:
            raise self.error(e.message, token.start + e.start, token.start + e.end, e.hint) from None

    def decoded(self, token: Token) -> bytes:
        try:
            return decode_string(token.text)
        except LiteralError as e:
            raise self.error(e.message, token.start + e.start, token.start + e.end, e.hint) from None


def settle(block: ast.Block) -> ast.Block:
    """`block` where no value is wanted: its last expression becomes a statement."""
    result = block.result
    if result is None:
        return block
    last: ast.Statement
    match result:
        case ast.Block():
            last = settle(result)
        case ast.IfExpr():
            last = ast.If(result.condition, settle(result.then), settle(result.otherwise), result.span)
        case _:
            last = ast.ExprStatement(result, result.span)
    return ast.Block((*block.statements, last), None, block.span)


def settled_if(raw: _If) -> ast.If:
    """`raw` where no value is wanted."""
    otherwise = raw.otherwise
    if isinstance(otherwise, _If):
        nested = settled_if(otherwise)
        otherwise = ast.Block((nested,), None, nested.span)
    elif otherwise is not None:
        otherwise = settle(otherwise)
    return ast.If(raw.condition, settle(raw.then), otherwise, raw.span)
