"""Calls of the script's own functions. They are expanded where they are called: arguments, context and everything
else that a function may use is simply there, and LLVM sees through all of it."""

from __future__ import annotations

from bpfseal.compiler.analysis import unset_variables, variables
from bpfseal.compiler.callbacks import declare_variables
from bpfseal.compiler.gen import MEMORIES, SCALARS, Buffer, Gen, is_signed, register_type
from bpfseal.compiler.ir import I8, I64, PTR, Value, const
from bpfseal.compiler.mapping import store_variable
from bpfseal.dsl import typed, types
from bpfseal.dsl.types import is_scalar, size_of
from bpfseal.errors import BpfsealError

_DEPTH = 8  # of calls in calls, as the kernel's own limit


def _expand(g: Gen, node: typed.CallUser, target: Value | None) -> Value | None:
    """The body in place. A scalar result is returned, one in memory goes to `target`."""
    function = node.function
    if len(g.calls) >= _DEPTH or function in g.calls:
        raise BpfsealError(
            f"{function.name}() calls itself"
            if function in g.calls
            else f"{function.name}(): calls are nested too deep",
            hint="BPF programs cannot recurse",
        )
    returns = function.returns
    places = {param: _argument(g, param, arg) for param, arg in zip(function.params, node.args, strict=True)}
    scalar = is_scalar(returns) and not isinstance(returns, types.Void)
    result = g.fn.slot(register_type(returns)) if scalar else None
    end = g.fn.fresh("returned")

    def leave(value: Value | None) -> None:
        if result is not None and value is not None:
            wanted = register_type(returns)
            if value.type != wanted:
                value = g.fn.pointer(value) if wanted == PTR else g.fn.integer(value, wanted, is_signed(returns))
            store_variable(g, value, result)
        g.fn.jump(end)

    kept = g.vars, g.loops, g.leave, g.frame, g.result_target
    g.vars = {var: place for var, place in g.vars.items() if var not in set(variables(function.body))} | places
    g.loops, g.leave, g.result_target = [], leave, target
    g.calls.append(function)
    declare_variables(g, function.body, unset_variables(function.body) - set(function.params))
    g.statements(function.body)
    g.calls.pop()
    g.vars, g.loops, g.leave, g.frame, g.result_target = kept
    g.fn.start(end)
    if result is None:
        return None
    type = register_type(returns)
    return g.fn.load(type, result, 8 if type == PTR else max(1, int(type[1:]) // 8))


def _argument(g: Gen, param: typed.Var, arg: typed.Expr) -> Buffer:
    if is_scalar(param.type):
        place = Buffer(g.fn.slot(register_type(param.type)))
        value = g.scalar(arg)
        wanted = register_type(param.type)
        if value.type != wanted:
            value = g.fn.pointer(value) if wanted == PTR else g.fn.integer(value, wanted, is_signed(arg.type))
        store_variable(g, value, g.locate(place))
        return place
    place = g.reserve(size_of(param.type))
    g.store(arg, g.locate(place))
    if size_of(arg.type) < size_of(param.type):
        g.clear_tail(g.locate(place), size_of(arg.type), size_of(param.type))
    return place


def _scalar(g: Gen, node: typed.CallUser) -> Value:
    value = _expand(g, node, None)
    return value if value is not None else const(0)


def _memory(g: Gen, node: typed.CallUser, target: Value, clean: bool) -> None:
    g.clear(target, size_of(node.type))
    _expand(g, node, target)


def call_external(g: Gen, node: typed.Call) -> Value:
    """A function of an imported C file. Registers have 64 bits: arguments are extended, of the result what counts is
    what its type says."""
    name, params = node.options["function"], node.options["params"]
    assert isinstance(params, tuple)
    args = []
    for expr, type in zip(node.args, params, strict=True):
        if isinstance(type, types.Ptr):
            args.append(g.fn.pointer(g.scalar(expr)) if is_scalar(expr.type) else g.address(expr))
        else:
            args.append(g.fn.integer(g.scalar(expr), I64, is_signed(type)))
    g.unit.kfuncs.add(f"i64 @{name}({', '.join(a.type for a in args)})")
    result = g.fn.op(I64, f"call i64 @{name}({', '.join(map(str, args))}) nounwind")
    if isinstance(node.type, types.Bool):
        return g.truth(g.fn.integer(result, I8))
    return result if isinstance(node.type, types.Void) else g.fn.integer(result, register_type(node.type))


SCALARS[typed.CallUser] = _scalar
MEMORIES[typed.CallUser] = _memory
