"""Syntax tree to text: what `parse` makes the same tree of."""

from __future__ import annotations

from typing import Any

from bpfseal.dsl import ast

_ESCAPES = {0x22: '\\"', 0x5C: "\\\\", 0x0A: "\\n", 0x09: "\\t", 0x0D: "\\r"}
_PRIMARY = (
    ast.Integer,
    ast.String,
    ast.Boolean,
    ast.Identifier,
    ast.Positional,
    ast.Variable,
    ast.Map,
    ast.Member,
    ast.Index,
    ast.SizeOf,
    ast.OffsetOf,
    ast.TypeInfo,
    ast.TupleExpr,
    ast.Call,
)


def show(script: ast.Script) -> str:
    """The whole script, a line per statement."""
    lines = [text.text for text in script.preamble]
    if script.config:
        lines += ["config = {", *(f"  {e.name} = {_config_value(e.value)};" for e in script.config), "}"]
    lines += [f"import {string(i.path.encode('utf-8', 'surrogateescape'))};" for i in script.imports]
    for decl in script.maps:
        lines.append(f"let @{decl.name} = {decl.kind}({decl.max_entries});" if decl.kind else f"let @{decl.name};")
    for macro in script.macros:
        lines.append(f"macro {macro.name}({', '.join(macro.params)}) {block(macro.body, 0)}")
    for function in script.functions:
        params = ", ".join(f"${name} : {type_name(type)}" for name, type in function.params)
        lines.append(f"fn {function.name}({params}) : {type_name(function.returns)} {block(function.body, 0)}")
    for probe in script.probes:
        points = ",\n".join(point.text for point in probe.points)
        name = f"{probe.name} = " if probe.name else ""
        predicate = f" /{expression(probe.predicate)}/" if probe.predicate is not None else ""
        lines.append(f"{name}{points}{predicate} {block(probe.body, 0)}")
    return "\n".join(lines) + "\n"


def _config_value(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else string(value.encode("utf-8", "surrogateescape"))


def string(value: bytes) -> str:
    """A literal with its quotes."""
    return '"' + "".join(_ESCAPES.get(b) or (chr(b) if 32 <= b < 127 else f"\\x{b:02x}") for b in value) + '"'


def type_name(type: ast.TypeName | ast.TypeOf) -> str:
    suffixes = "".join("*" if s == "*" else f"[{'' if s is None else s}]" for s in type.suffixes)
    base = type.base if isinstance(type, ast.TypeName) else f"typeof({operand(type.operand)})"
    return base + suffixes


def operand(node: Any) -> str:
    """What stands in sizeof(…) and the like; parentheses keep `x[0]` from being read as a type."""
    return type_name(node) if isinstance(node, ast.TypeName | ast.TypeOf) else f"({expression(node)})"


def block(node: ast.Block, depth: int) -> str:
    pad = "  " * (depth + 1)
    lines = [pad + statement(s, depth + 1) for s in node.statements]
    if node.result is not None:
        lines.append(pad + expression(node.result, depth + 1, True))
    return "\n".join(["{", *lines, "  " * depth + "}"])


def statement(node: Any, depth: int) -> str:
    match node:
        case ast.Block():
            return block(node, depth)
        case ast.If(condition=condition, then=then, otherwise=otherwise):
            text = f"if ({expression(condition, depth)}) {block(then, depth)}"
            match otherwise:
                case None:
                    return text
                case ast.Block(statements=(ast.If() as nested,), result=None) if nested.span == otherwise.span:
                    return f"{text} else {statement(nested, depth)}"
            return f"{text} else {block(otherwise, depth)}"
        case ast.While(condition=condition, body=body):
            return f"while ({expression(condition, depth)}) {block(body, depth)}"
        case ast.Unroll(count=count, body=body):
            return f"unroll ({expression(count, depth)}) {block(body, depth)}"
        case ast.ForMap(variable=variable, map=map, body=body):
            return f"for (${variable.name} : @{map.name}) {block(body, depth)}"
        case ast.ForRange(variable=variable, low=low, high=high, body=body):
            return f"for (${variable.name} : {unit(low, depth)}..{unit(high, depth)}) {block(body, depth)}"
        case ast.Defer(mode=mode, body=body):
            return f"defer{'' if mode == 'resume' else f'({mode})'} {block(body, depth)}"
        case ast.ExprStatement(expr=expr):
            return expression(expr, depth, True) + ";"
        case ast.Assign(target=target, op=op, value=value):
            return f"{expression(target, depth)} {op} {expression(value, depth)};"
        case ast.Let(name=name, type=type, value=value):
            annotation = f" : {type_name(type)}" if type is not None else ""
            return f"let ${name}{annotation}{'' if value is None else f' = {expression(value, depth)}'};"
        case ast.Jump(kind=kind, value=value):
            return f"{kind}{'' if value is None else f' {expression(value, depth)}'};"
    raise TypeError(f"no statement: {node.__class__.__name__}")


def unit(node: Any, depth: int = 0) -> str:
    """An expression that nothing around it can take apart."""
    text = expression(node, depth)
    return text if isinstance(node, _PRIMARY) else f"({text})"


def expression(node: Any, depth: int = 0, leading: bool = False) -> str:
    """`leading`: the text starts a statement, where a brace or an `if` would be read as one."""
    match node:
        case ast.Integer(value=value, text=text):
            return text or str(value)
        case ast.String(value=raw):
            return string(raw)
        case ast.Boolean(value=flag):
            return "true" if flag else "false"
        case ast.Identifier(name=name):
            return name
        case ast.Positional(number=number):
            return f"${number or '#'}"
        case ast.Variable(name=name):
            return f"${name}"
        case ast.Map(name=name, key=None):
            return f"@{name}"
        case ast.Map(name=name, key=ast.TupleExpr(elements=elements, names=())) if len(elements) > 1:
            return f"@{name}[{_list(elements, depth)}]"
        case ast.Map(name=name, key=key):
            return f"@{name}[{expression(key, depth)}]"
        case ast.Unary(op=op, operand=inner):
            return op + (f" {unit(inner, depth)}" if isinstance(inner, ast.Unary) else unit(inner, depth))
        case ast.IncDec(op=op, target=target, prefix=prefix):
            text = expression(target, depth)
            return op + text if prefix else text + op
        case ast.Binary(op=op, left=left, right=right):
            return f"{unit(left, depth)} {op} {unit(right, depth)}"
        case ast.Ternary(condition=condition, then=then, otherwise=otherwise):
            return f"{unit(condition, depth)} ? {unit(then, depth)} : {unit(otherwise, depth)}"
        case ast.Member(base=base, name=name, arrow=arrow):
            return f"{_base(base, depth)}{'->' if arrow else '.'}{name}"
        case ast.Index(base=base, index=index):
            return f"{_base(base, depth)}[{expression(index, depth)}]"
        case ast.Cast(type=type, operand=inner):
            return f"({type_name(type)}){unit(inner, depth)}"
        case ast.Comptime(operand=inner):
            return f"comptime {unit(inner, depth)}"
        case ast.SizeOf(operand=inner):
            return f"sizeof({operand(inner)})"
        case ast.TypeInfo(operand=inner):
            return f"typeinfo({operand(inner)})"
        case ast.OffsetOf(operand=inner, path=path):
            return f"offsetof({operand(inner)}, {'.'.join(path)})"
        case ast.TypeOf() | ast.TypeName():
            return type_name(node)
        case ast.TupleExpr(elements=elements, names=names) if names:
            return "(" + ", ".join(f"{n}={expression(e, depth)}" for n, e in zip(names, elements, strict=True)) + ")"
        case ast.TupleExpr(elements=elements):
            return f"({_list(elements, depth)}{',' if len(elements) == 1 else ''})"
        case ast.Call(name=name, args=args, bang=bang):
            return f"{name}{'!' if bang else ''}({_list(args, depth)})"
        case ast.Block():
            text = block(node, depth)
            return f"({text})" if leading else text
        case ast.IfExpr(condition=condition, then=then, otherwise=otherwise):
            text = f"if ({expression(condition, depth)}) {block(then, depth)} else {block(otherwise, depth)}"
            return f"({text})" if leading else text
    raise TypeError(f"no expression: {node.__class__.__name__}")


def _base(node: Any, depth: int) -> str:
    """What a member or an index is taken of."""
    bare_map = isinstance(node, ast.Map) and node.key is None
    return f"({expression(node, depth)})" if bare_map or isinstance(node, ast.Integer) else unit(node, depth)


def _list(nodes: Any, depth: int) -> str:
    return ", ".join(expression(n, depth) for n in nodes)
