"""Valid scripts that together use every construct of the language: what the fuzzers start from."""

from __future__ import annotations

C_PREAMBLE = """#include <linux/sched.h>
#define LIMIT (1 << 4)
#ifndef BPFTRACE_HAVE_BTF
#error x
#endif
struct pair {
  int a : 3; unsigned b : 5;
  union { char c[16]; void *p; int (*f)(int, char); };
  struct pair *next;
} __attribute__((packed, aligned(4)));
enum color { RED, GREEN = LIMIT, BLUE };
typedef unsigned long long u64_alias;
kprobe:f { $p = (struct pair *)arg0; print($p->next->c); @[GREEN] = LIMIT; }
"""

MACROS = """macro inc($x) { $x += 1; $x } macro first(@m, k) { @m[k] } macro cast(t, e) { (t*)e }
macro twice(x) { x + x } macro four(x) { twice(twice(x)) }
begin { $a = 1; print(inc($a)); @z[3] = 4; print(first(@z, 3)); print(cast(typeof(uint8), -1)); four(delta(@s, 1)) }
"""

SEEDS = (
    'BEGIN { printf("hello %s\\n", comm); } END { clear(@a); }',
    'tracepoint:syscalls:sys_enter_openat /pid == 1 && comm != "sh"/ { @[comm, str(args.filename)] = count(); }',
    "kprobe:vfs_read, kprobe:vfs_write+4, kr:tcp_* { @start[tid] = nsecs; } interval:s:1 { exit(); }",
    'uprobe:"/opt/my app":"ns::f(int, int)" { print((arg0, arg1)); } usdt:*:prov:name { @++; }',
    'u:/bin/bash@readline.c:362 { $x = reg("ip"); print(ksym($x)); }',
    "profile:hz:99 /@run/ { @[kstack(perf, 3), ustack] = hist(rand % 100, 2); }",
    "software:faults:1e3, hardware:cache-misses:1_000_000 { @m = max(cpu); @l = lhist(cpu, 0, 10, 1); }",
    "watchpoint:0x10000000:8:rw { @ = stats(retval); } iter:task { print(ctx.task->comm); }",
    "#!/usr/bin/env bpfseal\n// comment\n/* more\n lines */ i:ms:10 { /* in */ @a -= 1; @b <<= 2; @c ^= 0x1F; }",
    C_PREAMBLE,
    'config = { stack_mode = perf; max_map_keys = 2; cpp_demangle = false; license = "GPL" } begin { }',
    'import "helpers.bt"; let @a = lruhash(100); let @b = percpuhash(5); begin { @a[1] = 2; }',
    MACROS,
    "fn add($a : int64, $b : struct task_struct *) : int64 { return $a + 1; } begin { print(add(1, curtask)); }",
    'begin { if ($1 > 3) { print($#); } else if (str($2) == "x") { return; } else { exit(1) } }',
    "begin { $i = 0; while ($i < 10) { if $i == 5 { break } $i++; continue; } unroll (3) { @x++; } }",
    "begin { for ($kv : @map) { print($kv.0.1); delete(@map, $kv.0); } for $i : 0..ncpus { @[$i] = $i--; } }",
    'begin { let $x; let $y : uint16 = 3; let $z : typeof($y)[4]*; _ = has_key(@a, 1); $t = (1, (a=2, b="c"), ()); }',
    "begin { $b = { let $q = 1; $q * 2 }; $c = if (pid) { 1 } else { 2 }; print($t.1.b ?: sizeof(struct foo *[4])); }",
    "begin { print(offsetof(struct foo, a.b.c)); print(sizeof((x[0]))); if comptime (typeinfo($x).base == 1) { } }",
    "begin { $a = (int8[8])12345; $b = (uint8)~-!*$p; $c = &$x; $d = &@m; print(1_000us + 0777 + 2e3 + 7ULL); }",
    'lsm:bprm_check_security { defer { print(comm); } defer(signal) { print(getopt("verbose")); } return -1; }',
    'rt:sys_enter { print("\\033[31m\\x41\\n\\"\\\\"); print(strftime("%H", nsecs(tai))); } self:signal:SIGUSR1 { }',
    'test:one { assert(1 == 1, "ok") } bench:two { @ = tseries(1, 1s, 5, "max") } name = kprobe:f { }',
)

_TOKENS = """
{ } ( ) [ ] ; , . -> .. : ? = == != < <= > >= << >> + - * / % & | ^ ~ ! && || ++ -- += <<= /* */ // " \\ $ @ # $x @m
$1 $# pid comm if else while for unroll let return struct union enum typedef sizeof( offsetof( typeof( typeinfo( macro
fn import config true false 0 0x 1e9 18446744073709551616 1ms 1__ "s" '\\' BEGIN kprobe:f /1/ u:/x:y $kv.0 #define
#if #endif #else #ifdef #include comptime __attribute__((packed)) (uint8) (x) (x*) (1,) (a=1) {1} defer unroll(9) é
"""
TOKENS = (*_TOKENS.split(), "\n", "\x00", "\x7f", "\U0001f600", "#define A B\n#define B A\n", "macro m(x) { m(x) }")
