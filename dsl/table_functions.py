"""Rows of the table: functions, and the aggregations that are assigned to maps.

How `typed.Call`s look to the code generator, beyond what a row says:

- an argument named `pointer` always has a type Ptr whose space is already decided ("kernel", "user", "btf", "bpf" or
  "none"); integers have been cast to it;
- an argument named `memory` is a value kept in memory (Str, Buf, Array, Record, Tuple): pass its address;
- integer arguments are of the type the row names, casts included;
- constant arguments are gone from `args`, they are in `options`;
- functions that fold to constants at compile time never arrive at all;
- a Call that is not in the table: "zeroed", without arguments, a value of its (memory) type that is all zero bytes.
"""

from __future__ import annotations

from bpfseal.dsl.table_output import OUTPUT_AND_STRINGS
from bpfseal.dsl.table_types import REGISTERS, TRACING, USER_CODE, FunctionSpec

_ROWS = (
    # --- addresses and symbols ------------------------------------------------------------------------------
    FunctionSpec(
        "ksym",
        ("ksym_t ksym(uint64 address)",),
        (1, 1),
        "The kernel function that an address is in; resolved when printed.",
        'args: one U64; type Sym("kernel")',
    ),
    FunctionSpec(
        "usym",
        ("usym_t usym(uint64 address)",),
        (1, 1),
        "The function of the current process that an address is in; resolved when printed.",
        'args: one U64; type Sym("user")',
    ),
    FunctionSpec(
        "kaddr",
        ("uint64 kaddr(const string name)",),
        (1, 1),
        "Address of a kernel symbol.",
        'options "symbol": str, "address": int as this boot of the kernel has it; type U64',
    ),
    FunctionSpec(
        "percpu_kaddr",
        ("uint64 percpu_kaddr(const string name, [uint32 cpu])",),
        (1, 2),
        "Address of a per-CPU kernel variable, of this or the given processor; 0 when there is no such processor.",
        'options "symbol": str; args: none (bpf_this_cpu_ptr) or one U32 (bpf_per_cpu_ptr); type U64',
    ),
    FunctionSpec(
        "uaddr",
        ("T *uaddr(const string name)",),
        (1, 1),
        "Address of a symbol of the traced program.",
        'options "symbol": str, "module": path, "address": int in the file; type Ptr(U8…U64 by size, "user")',
        probes=USER_CODE,
    ),
    FunctionSpec(
        "reg",
        ("uint64 reg(const string name)",),
        (1, 1),
        "Contents of a register when the probe fired.",
        'options "register": str (an x86-64 name: ax bx cx dx si di bp sp ip flags r8…r15 cs ss orig_ax); type U64',
        probes=REGISTERS,
    ),
    FunctionSpec(
        "kptr",
        ("T *kptr(T *pointer)",),
        (1, 1),
        "The same pointer, read as kernel memory.",
        'Cast to Ptr(…, "kernel"); of an integer nothing remains',
    ),
    FunctionSpec(
        "uptr",
        ("T *uptr(T *pointer)",),
        (1, 1),
        "The same pointer, read as user memory.",
        'Cast to Ptr(…, "user"); of an integer nothing remains',
    ),
    FunctionSpec(
        "kstack",
        ("kstack_t kstack([mode, ] [int limit])",),
        (0, 2),
        "The kernel's stack. Modes bpftrace, perf, raw.",
        'options "mode": str, "depth": int; type Stack("kernel", mode, depth)',
    ),
    FunctionSpec(
        "ustack",
        ("ustack_t ustack([mode, ] [int limit])",),
        (0, 2),
        "The user's stack. Modes bpftrace, perf, raw, build_id.",
        'options "mode": str, "depth": int; type Stack("user", mode, depth)',
    ),
    FunctionSpec(
        "dw_ustack",
        ("ustack_t dw_ustack([mode, ] [int limit])",),
        (0, 2),
        "The user's stack by call frame information, of processes named by -p, -c or --dwarf-pid. Modes bpftrace, "
        "perf, raw. On x86-64.",
        'as ustack; type Stack("user", mode, depth)',
    ),
    FunctionSpec(
        "len",
        ("int64 len(@map)", "int64 len(kstack_t)", "int64 len(ustack_t)"),
        (1, 1),
        "Number of entries of a map, or of frames of a stack.",
        "`map`, or one arg of type Stack; type I64",
    ),
    # --- network --------------------------------------------------------------------------------------------
    FunctionSpec(
        "ntop",
        ("inet ntop([int64 family, ] address)",),
        (1, 2),
        "An IPv4 or IPv6 address for printing, from an integer or an array of 4 or 16 bytes.",
        "args: I64 family, then U32 in network order, or memory (Array or Str of 4 or 16 bytes); type Inet",
    ),
    FunctionSpec(
        "pton",
        ("uint8[4] pton(const string ipv4)", "uint8[16] pton(const string ipv6)"),
        (1, 1),
        "The bytes of an address, in network order.",
        'options "bytes": bytes; type Array(U8, 4 or 16); a Cast of it to an integer folds to Int',
        "compile",
    ),
    FunctionSpec(
        "macaddr",
        ("mac_address macaddr(char[6] address)",),
        (1, 1),
        "A hardware address for printing.",
        "args: one pointer or memory; type Mac",
    ),
    FunctionSpec(
        "bswap",
        ("uintN bswap(uintN n)",),
        (1, 1),
        "The bytes of an integer in the opposite order.",
        "args: one unsigned Int; same type",
    ),
    FunctionSpec(
        "socket_cookie",
        ("uint64 socket_cookie(struct sock *sk)",),
        (1, 1),
        "A number that stays with a socket for its life.",
        'args: one pointer (space "btf"); type U64',
        probes=TRACING,
    ),
    # --- files, processes, time -----------------------------------------------------------------------------
    FunctionSpec(
        "path",
        ("string path(struct path *path, [int32 size])",),
        (1, 2),
        "Full path of a struct path. In deferred blocks of any probe.",
        'args: one pointer (space "btf") to struct path; options "size": int; type Str(size)',
        probes=frozenset({"fentry", "fexit", "iter", "lsm"}),
    ),
    FunctionSpec(
        "cgroupid",
        ("uint64 cgroupid(const string path)",),
        (1, 1),
        "Id of the cgroup at a path.",
        "Int of type U64",
        "compile",
    ),
    FunctionSpec(
        "cgroup_path",
        ("cgroup_path_t cgroup_path(uint64 id, [const string filter])",),
        (1, 2),
        "Path of a cgroup by its id, looked up when printed, in hierarchies whose name matches the filter.",
        'args: one U64; options "filter": bytes (empty: all); type CgroupPath',
    ),
    FunctionSpec(
        "nsecs",
        ("uint64 nsecs([clock])",),
        (0, 1),
        "Nanoseconds of a clock: boot (the default), monotonic, tai, sw_tai.",
        'options "clock": "boot", "monotonic", "tai" or "sw_tai"; type U64. The bare word is this call too',
    ),
    FunctionSpec(
        "pid",
        ("uint32 pid([curr_ns|init])",),
        (0, 1),
        "Process id, as the tracer's or the initial pid namespace counts.",
        'Builtin "pid" or "pid_init"',
    ),
    FunctionSpec(
        "tid",
        ("uint32 tid([curr_ns|init])",),
        (0, 1),
        "Thread id, as the tracer's or the initial pid namespace counts.",
        'Builtin "tid" or "tid_init"',
    ),
    # --- maps -----------------------------------------------------------------------------------------------
    FunctionSpec(
        "delete",
        ("bool delete(@map, key)", "bool delete(@map)", "bool delete(@map[key])"),
        (1, 2),
        "Remove an entry; whether it was there. A map without keys is emptied.",
        '`map`, `key` (None: scalar map); options "discarded": True when the result is not used, then a missing entry '
        "is worth a runtime warning; type Bool",
    ),
    FunctionSpec(
        "has_key",
        ("bool has_key(@map, key)",),
        (2, 2),
        "Whether a map has an entry.",
        "`map`, `key`; type Bool",
    ),
    FunctionSpec(
        "find",
        ("bool find(@map, key, $variable)",),
        (3, 3),
        "Whether a map has an entry; if so the variable becomes its value.",
        "`map`, `key`, args: one VarRef of the map's value type, assigned when found; type Bool",
    ),
    # --- control --------------------------------------------------------------------------------------------
    FunctionSpec(
        "signal",
        ("void signal(const string name)", "void signal(uint32 number)"),
        (1, 1),
        "Send a signal to the current process.",
        "args: one U32; type Void; a failure is worth a runtime warning",
        unsafe=True,
    ),
    FunctionSpec(
        "signal_thread",
        ("void signal_thread(const string name)", "void signal_thread(uint32 number)"),
        (1, 1),
        "Send a signal to the current thread.",
        "as signal",
        unsafe=True,
    ),
    FunctionSpec(
        "override",
        ("void override(uint64 value)",),
        (1, 1),
        "Return `value` from the traced function without running it.",
        "args: one U64; type Void",
        unsafe=True,
        probes=frozenset({"kprobe"}),
    ),
    FunctionSpec(
        "write_user",
        ("bool write_user(void *destination, source, uint32 length)",),
        (3, 3),
        "Write to the memory of the current process; whether it worked.",
        'args: pointer (space "user"), memory or pointer (space "bpf"), U32 length; type Bool',
        unsafe=True,
    ),
)

# Folded away or rewritten before the code generator.
_REWRITTEN = (
    FunctionSpec(
        "ppid", ("uint32 ppid([struct task_struct *task])",), (0, 1), "Id of the parent process.", "FieldOf chain"
    ),
    FunctionSpec(
        "pcomm", ("string pcomm([struct task_struct *task])",), (0, 1), "Name of the parent process.", "FieldOf chain"
    ),
    FunctionSpec(
        "leader_tid",
        ("uint32 leader_tid([struct task_struct *task])",),
        (0, 1),
        "Thread id of the thread group's leader.",
        "FieldOf chain",
    ),
    FunctionSpec(
        "leader_comm",
        ("string leader_comm([struct task_struct *task])",),
        (0, 1),
        "Name of the thread group's leader.",
        "FieldOf chain",
    ),
    FunctionSpec(
        "is_err",
        ("bool is_err(void *pointer)",),
        (1, 1),
        "Whether a pointer is one of the kernel's ERR_PTR error codes.",
        "Binary >= on U64",
    ),
    FunctionSpec(
        "container_of",
        ("T *container_of(pointer, T, member)",),
        (3, 3),
        "The record that a pointer's target is a member of.",
        "Cast of a Binary -",
    ),
    FunctionSpec(
        "is_literal", ("bool is_literal(any)",), (1, 1), "Whether an expression is a literal.", "Int", "compile"
    ),
    FunctionSpec("is_integer", ("bool is_integer(any)",), (1, 1), "Whether it is an integer.", "Int", "compile"),
    FunctionSpec(
        "is_unsigned_integer",
        ("bool is_unsigned_integer(any)",),
        (1, 1),
        "Whether it is an unsigned integer.",
        "Int",
        "compile",
    ),
    FunctionSpec("is_str", ("bool is_str(any)",), (1, 1), "Whether it is a string.", "Int", "compile"),
    FunctionSpec("is_ptr", ("bool is_ptr(any)",), (1, 1), "Whether it is a pointer.", "Int", "compile"),
    FunctionSpec("is_array", ("bool is_array(any)",), (1, 1), "Whether it is an array.", "Int", "compile"),
    FunctionSpec("is_scalar", ("bool is_scalar(@map)",), (1, 1), "Whether a map has no keys.", "Int", "compile"),
    FunctionSpec(
        "kfunc_exist",
        ("bool kfunc_exist(const string name)",),
        (1, 1),
        "Whether the kernel has a kfunc.",
        "Int",
        "compile",
    ),
    FunctionSpec(
        "kfunc_allowed",
        ("bool kfunc_allowed(const string name)",),
        (1, 1),
        "Whether the kernel has a kfunc and this kind of probe may call it.",
        "Int",
        "compile",
    ),
    FunctionSpec(
        "default_str_length",
        ("uint64 default_str_length()",),
        (0, 0),
        "Size of what str() returns.",
        "Int",
        "compile",
    ),
    FunctionSpec(
        "assert_str",
        ("void assert_str(any)",),
        (1, 1),
        "Stop the compilation unless the value is a string, or an array of or pointer to char.",
        "never",
        "compile",
    ),
)

_AGGREGATES = (
    FunctionSpec(
        "count",
        ("count_t count()",),
        (0, 0),
        "Count calls.",
        'Aggregate statement, value None; map.value types.Aggregate("count")',
    ),
    FunctionSpec("sum", ("sum_t sum(int64 n)",), (1, 1), "Sum of all n.", 'types.Aggregate("sum", signed)'),
    FunctionSpec("min", ("min_t min(int64 n)",), (1, 1), "Smallest n.", 'types.Aggregate("min", signed)'),
    FunctionSpec("max", ("max_t max(int64 n)",), (1, 1), "Largest n.", 'types.Aggregate("max", signed)'),
    FunctionSpec("avg", ("avg_t avg(int64 n)",), (1, 1), "Average of all n.", 'types.Aggregate("avg", signed)'),
    FunctionSpec(
        "stats",
        ("stats_t stats(int64 n)",),
        (1, 1),
        "Count, average and total of all n.",
        'types.Aggregate("stats", signed)',
    ),
    FunctionSpec(
        "hist",
        ("hist_t hist(int64 n, [const int bits])",),
        (1, 2),
        "Histogram by powers of two, each cut in 2^bits buckets, 0 to 5.",
        'types.Aggregate("hist", signed, (bits,)); value I64',
    ),
    FunctionSpec(
        "lhist",
        ("lhist_t lhist(int64 n, const int min, const int max, const int step)",),
        (4, 4),
        "Histogram with buckets of one size, at most 1000.",
        'types.Aggregate("lhist", signed, (min, max, step)); value I64',
    ),
    FunctionSpec(
        "tseries",
        ("tseries_t tseries(int64 n, const int interval_ns, const int intervals, [const string aggregation])",),
        (3, 4),
        "Values over time: one per interval, the last one or their avg, max, min or sum.",
        'types.Aggregate("tseries", signed, (interval_ns, intervals, aggregation or "none")); value I64',
    ),
)

FUNCTIONS: dict[str, FunctionSpec] = {row.name: row for row in (*OUTPUT_AND_STRINGS, *_ROWS, *_REWRITTEN)}

AGGREGATES: dict[str, FunctionSpec] = {row.name: row for row in _AGGREGATES}
"""Only as the whole right side of an assignment to a map: a `typed.Aggregate` statement whose `value` is I64 or U64 by
the aggregate's sign (as written types promoted), None for count."""
