"""What the code generator gets."""

from __future__ import annotations

import pytest

from bpfseal.dsl import typed
from bpfseal.dsl.types import BOOL, I64, U64, Aggregate, Int, Ptr, Record, Str, Tuple

from .kit import all_of, checked, warnings


def body(program: str, **config: str | int | bool) -> tuple[typed.Stmt, ...]:
    return checked(program, **config).probes[0].body


def test_conditions_are_bool() -> None:
    program = "begin { while (pid) { if (curtask) { break; } } $x = pid ? 1 : 2; if (pid && tid || uid) { } }"
    for kind in (typed.While, typed.If, typed.Ternary):
        found = all_of(kind, body(program))
        assert found
        assert all(node.condition.type == BOOL for node in found)
    for logical in all_of(typed.Logical, body(program)):
        assert logical.left.type == logical.right.type == BOOL


@pytest.mark.parametrize("op", ["+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>"])
def test_operands_of_arithmetic_have_the_type_of_the_result(op: str) -> None:
    (node,) = all_of(typed.Binary, body(f"begin {{ $x = pid {op} cpu; }}"))
    assert node.type in (I64, U64)
    assert node.left.type == node.right.type == node.type


@pytest.mark.parametrize("op", ["==", "!=", "<", ">", "<=", ">="])
def test_operands_of_comparisons_have_one_type(op: str) -> None:
    (node,) = all_of(typed.Binary, body(f"begin {{ $y = (int16)1; $x = $y {op} pid; }}"))
    assert node.type == BOOL
    assert node.left.type == node.right.type == I64


def test_a_predicate_is_a_leading_if() -> None:
    first, second = body("begin /pid == 1/ { print(1); }")
    assert isinstance(first, typed.If)
    assert first.then == (typed.Jump("return", None, first.span),)
    assert isinstance(second, typed.Do)


def test_a_predicate_that_always_holds_is_gone() -> None:
    assert len(body("begin /1 == 1/ { print(1); }")) == 1


def test_pointer_arithmetic_is_scaled() -> None:
    (node,) = all_of(typed.Binary, body("begin { $p = (uint32 *)8; $q = $p + 3; }"))
    assert node.right == typed.Int(12, I64, node.right.span)
    (moved,) = list(all_of(typed.Binary, body("begin { $p = (uint32 *)8; $q = 3 + $p; }")))
    assert isinstance(moved.left.type, Ptr)


def test_compound_assignment_is_gone() -> None:
    (node,) = body("begin { @x += 5; }")
    assert isinstance(node, typed.AssignMap)
    assert isinstance(node.value, typed.Binary)
    assert node.map.value == I64


def test_unroll_repeats_with_variables_of_its_own() -> None:
    found = body("begin { unroll (3) { $a = pid; print($a); } }")
    assert len({id(v) for v in all_of(typed.Var, found)}) == 3


def test_several_keys_are_a_tuple() -> None:
    script = checked("begin { @[pid, comm] = count(); @[(1, comm)] = count(); }")
    (definition,) = script.maps
    assert definition.key == Tuple((Int(32, False), Str(16)))
    assert definition.value == Aggregate("count", False)


def test_key_literals_have_the_type_of_the_key() -> None:
    (first, second) = body('begin { @["a long key"] = 1; @["b"] = 300; }')
    assert isinstance(first, typed.AssignMap)
    assert isinstance(second, typed.AssignMap)
    assert first.key is not None
    assert second.key == typed.StrLit(b"b", Str(11), second.key.span if second.key else first.span)
    assert first.value.type == second.value.type == Int(16)


def test_maps_grow_over_all_probes() -> None:
    script = checked('begin { @x = "a"; } end { @x = "abcdef"; } interval:s:1 { @y = @x; }')
    types = {m.name: m.value for m in script.maps}
    assert types == {"x": Str(7), "y": Str(7)}


def test_a_map_that_is_read_before_it_is_written() -> None:
    script = checked("begin { @y = @x; } end { @x = (uint16)1; }")
    assert {m.name: m.value for m in script.maps} == {"x": Int(16, False), "y": Int(16, False)}


def test_a_map_that_only_counts_up() -> None:
    assert [m.value for m in checked("begin { @x++; }").maps] == [I64]


def test_aggregates() -> None:
    script = checked(
        "begin { @c = count(); @s = sum(pid); @n = min(-1); @h = hist(pid); @l = lhist(pid, 0, 100, 10);"
        '@t = tseries(pid, 1s, 5, "max"); @v = avg(pid); @w = stats(pid); @k = hist(pid, 3); }',
        unstable_tseries="enable",
    )
    assert {m.name: m.value for m in script.maps} == {
        "c": Aggregate("count", False),
        "s": Aggregate("sum", False),
        "n": Aggregate("min", True),
        "h": Aggregate("hist", True, (0,)),
        "l": Aggregate("lhist", True, (0, 100, 10)),
        "t": Aggregate("tseries", True, (10**9, 5, "max")),
        "v": Aggregate("avg", False),
        "w": Aggregate("stats", False),
        "k": Aggregate("hist", True, (3,)),
    }
    values = {s.map.name: s.value for s in all_of(typed.Aggregate, script.probes[0].body)}
    assert values.pop("c") is None
    assert all(v is not None and v.type in (I64, U64) for v in values.values())


def test_one_signed_value_makes_a_sum_signed() -> None:
    script = checked("begin { @s = sum(pid); @s = sum(-1); }")
    assert script.maps[0].value == Aggregate("sum", True)


def test_declared_maps() -> None:
    script = checked("let @a = lruhash(100); let @b = percpuhash(5); begin { @a[1] = 2; @b[1] = count(); @c = 1; }")
    assert [(m.name, m.kind, m.entries) for m in script.maps] == [
        ("a", "lruhash", 100),
        ("b", "percpuhash", 5),
        ("c", "auto", 4096),
    ]


def test_print_of_a_map() -> None:
    (call,) = all_of(typed.Call, body("begin { print(@x, 5, 10); @x = 1; }"))
    assert (call.map and call.map.name, call.options, call.args) == ("x", {"top": 5, "div": 10}, ())


def test_print_of_an_element_is_a_value() -> None:
    (call,) = all_of(typed.Call, body("begin { @x[1] = 1; print(@x[1]); }"))
    assert isinstance(call.args[0], typed.MapRead)
    (call,) = all_of(typed.Call, body("begin { @x[1] = stats(1); print(@x[1]); }"))
    assert call.options == {"element": True}
    assert call.key is not None


def test_delete_forms() -> None:
    calls = [s.expr for s in body("begin { @a[1] = 1; @b = 1; delete(@a, 1); delete(@a[1]); delete(@b); }")[2:]]
    assert [(c.map and c.map.name, c.key is None, c.options) for c in calls] == [
        ("a", False, {"discarded": True}),
        ("a", False, {"discarded": True}),
        ("b", True, {"discarded": True}),
    ]
    (kept,) = all_of(typed.Call, body("begin { @a[1] = 1; $x = delete(@a, 1); }"))
    assert kept.options == {}


def test_options_of_calls() -> None:
    def options(text: str) -> dict[str, object]:
        (call,) = all_of(typed.Call, body(f"begin {{ {text}; }}"))
        return call.options

    assert options(r'printf("%d\n", 1)') == {"format": b"%d\n"}
    assert options("$x = kstack(perf, 3)") == {"mode": "perf", "depth": 3}
    assert options("$x = ustack") == {"mode": "bpftrace", "depth": 127}
    assert options("$x = nsecs(tai)") == {"clock": "tai"}
    assert options("$x = nsecs") == {"clock": "boot"}
    assert options("time()") == {"format": b"%H:%M:%S\n"}
    assert options('join(0, ",")') == {"separator": b","}
    assert options("$x = str(0, 10)") == {"size": 10}
    assert options('$x = strncmp(comm, "ab", 2)') == {"n": 2}
    assert options('$x = pton("1.2.3.4")') == {"bytes": bytes((1, 2, 3, 4))}
    assert options('$x = kaddr("jiffies")') == {"symbol": "jiffies", "address": 0xFFFFFFFF81000000}


def test_config_changes_stacks_and_strings() -> None:
    (call,) = all_of(typed.Call, body("begin { $x = kstack; }", stack_mode="perf"))
    assert call.options["mode"] == "perf"
    (call,) = all_of(typed.Call, body("config = { max_strlen = 64 } begin { $x = str(0); }"))
    assert call.type == Str(64)


@pytest.mark.parametrize(
    ("point", "space"),
    [("kprobe:vfs_read", "kernel"), ("uprobe:/bin/bash:main", "user"), ("begin", "none")],
)
def test_numbers_are_addresses_of_the_probes_side(point: str, space: str) -> None:
    (call,) = all_of(typed.Call, body(f"{point} {{ $x = str((uint64)5); }}"))
    assert isinstance(call.args[0].type, Ptr)
    assert call.args[0].type.space == space


def test_address_spaces_follow_the_value() -> None:
    def spaces(program: str) -> set[str]:
        return {
            call.args[0].type.space
            for call in all_of(typed.Call, body(program))
            if call.name == "str" and isinstance(call.args[0].type, Ptr)
        }

    assert spaces("tracepoint:syscalls:sys_enter_openat { print(str(args.filename)); }") == {"user"}
    assert spaces("fentry:vfs_read { print(str(args.buf)); }") == {"user"}
    assert spaces('uprobe:/bin/bash:main { print(str(kaddr("jiffies"))); }') == {"kernel"}
    assert spaces("kprobe:vfs_read { $p = uptr(arg0); print(str($p)); }") == {"user"}
    assert spaces("kprobe:vfs_read { @p = arg1; } uprobe:/bin/bash:main { print(str(@p)); }") == set()
    assert spaces("uprobe:/bin/bash:main { print(str(@p)); } kprobe:vfs_read { @p = arg1; }") == {"kernel"}


def test_members_are_chains() -> None:
    (statement,) = body("kprobe:vfs_read { $x = ((struct shapes *)arg0).inner.y; }")
    assert isinstance(statement, typed.AssignVar)
    outer = statement.value
    assert isinstance(outer, typed.FieldOf)
    assert outer.field.offset == 8
    assert isinstance(outer.base, typed.FieldOf)
    assert outer.base.field.offset == 40
    assert isinstance(outer.base.base.type, Ptr)


def test_let_without_a_value_is_zero() -> None:
    first, second, third = body("begin { let $a: int32; let $b: string[5]; let $c: mac_address; }")
    assert isinstance(first, typed.AssignVar)
    assert first.value == typed.Int(0, Int(32), first.value.span)
    assert isinstance(second, typed.AssignVar)
    assert second.value == typed.StrLit(b"", Str(5), second.value.span)
    assert isinstance(third, typed.AssignVar)
    assert isinstance(third.value, typed.Call)
    assert third.value.name == "zeroed"


def test_comptime_branches() -> None:
    program = 'begin { if comptime (probetype == "special") { print(1); } else { fail("wrong branch"); } }'
    assert len(all_of(typed.Call, body(program))) == 1


def test_ternary_of_effects_is_an_if() -> None:
    (node,) = body('begin { pid == 1 ? print("a") : print("b"); }')
    assert isinstance(node, typed.If)


def test_defer_keeps_what_it_reads() -> None:
    found = all_of(typed.Defer, body("begin { $a = pid; $b = tid; defer { $c = 1; print($a + $c); } print($b); }"))
    assert [v.name for v in found[0].captures] == ["a"]


def test_functions_come_before_their_callers() -> None:
    script = checked(
        "fn outer($x : int64) : int64 { return inner($x) + 1; } fn inner($x : int64) : int64 { return $x; }"
        "begin { print(outer(1)); }"
    )
    assert [f.name for f in script.functions] == ["inner", "outer"]
    assert script.functions[0].body


def test_warnings() -> None:
    assert "variable $x was never assigned to" in warnings("begin { let $x: int32; }")
    assert "variable used before it was assigned: $x" in warnings("begin { let $x: int32; print($x); $x = 1; }")
    assert "Return value discarded." in warnings("begin { 1; }")
    assert "Return value discarded." not in warnings("begin { _ = 1; }")
    assert "Unreachable statement." in warnings("begin { return; print(1); }")
    assert "Unused map: @a" in warnings("let @a = hash(10); begin { print(1); }")
    assert "@strat is never written, it is always zero" in warnings(
        "kprobe:vfs_read { @start[tid] = nsecs; } kretprobe:vfs_read { print(@strat[tid]); delete(@start, tid); }"
    )
    assert any("signed operands" in w for w in warnings("begin { $x = (int64)5; $y = $x / pid; }"))
    assert any("cannot hold" in w for w in warnings("begin { $x = (uint64)5; $y = (int64)6; $z = $x * $y; }"))
    assert any("in a loop" in w for w in warnings("begin { for ($i : 0..2) { @x = $i; print(@x); } }"))
    assert warnings('begin { $x = pid; printf("%d\\n", $x); @[comm] = count(); }') == []


def test_declared_pointers_learn_their_address_space() -> None:
    program = "uprobe:/bin/bash:main { let $p: struct shapes * = (struct shapes *)arg0; print($p.a); }"
    assert {v.type for v in all_of(typed.Var, body(program))} == {Ptr(Record("struct shapes", 112), "user")}
    program = "kprobe:vfs_read { let $a: struct file *[2] = (*(struct shapes *)arg0).files; print($a[0]); }"
    assert {str(v.type) for v in all_of(typed.Var, body(program))} == {"struct file *[2]"}


def test_a_string_that_is_appended_to_itself() -> None:
    script = checked(
        'begin { $s = comm; for ($i : 0..3) { $s = str_concat($s, "x"); } @s = "a"; @s = str_concat(@s, "b"); }'
    )
    assert {v.type for v in all_of(typed.Var, script.probes[0].body) if v.name == "s"} == {Str(1024)}
    assert script.maps[0].value == Str(1024)


def test_variables_that_the_kernel_does_not_name_are_told() -> None:
    (warning,) = warnings('begin { print(percpu_kaddr("process_counts")); }')
    assert warning.startswith("the kernel's symbol table has no variable 'process_counts'")
    assert warnings('begin { print(percpu_kaddr("avenrun")); }') == []
