"""Rows of the table: config variables."""

from __future__ import annotations

from bpfseal.dsl.table_types import ConfigSpec

_UNSTABLE = ("enable", "warn", "error")

LICENSES = ("Dual MIT/GPL", "Dual BSD/GPL", "Dual MPL/GPL", "GPL and additional rights", "GPL v2", "GPL")
STACK_MODES = ("bpftrace", "perf", "raw", "build_id")

_ROWS = (
    ConfigSpec(
        "cache_user_symbols",
        "choice",
        "per_pid",
        "How user symbols are cached: one cache per process, per program file, or none.",
        ("per_pid", "per_program", "none"),
    ),
    ConfigSpec("cpp_demangle", "bool", True, "Show C++ names demangled in user stacks."),
    ConfigSpec("lazy_symbolication", "bool", True, "Look user symbols up when they are printed, not when attaching."),
    ConfigSpec("license", "choice", "GPL", "Licence string of the programs.", LICENSES, exact=True),
    ConfigSpec("log_size", "int", 1000000, "Bytes of verifier log to ask for when a program is rejected."),
    ConfigSpec("max_bpf_progs", "int", 1024, "Most programs that one script may become."),
    ConfigSpec("max_cat_bytes", "int", 10240, "Most bytes that cat() prints of a file."),
    ConfigSpec("max_map_keys", "int", 4096, "Entries of a map that declares no size."),
    ConfigSpec("max_probes", "int", 1024, "Most probe points that one script may attach to."),
    ConfigSpec("max_strlen", "int", 1024, "Bytes of a string made by str(), buf() or path(), its NUL included."),
    ConfigSpec(
        "missing_probes",
        "choice",
        "error",
        "What to do about a probe point that does not exist: stop, warn and go on, or say nothing.",
        ("error", "warn", "ignore"),
    ),
    ConfigSpec("on_stack_limit", "int", 32, "Largest object in bytes that is kept on the BPF stack."),
    ConfigSpec("perf_rb_pages", "int", 0, "Pages of the ring buffer for events; 0 chooses by the machine's memory."),
    ConfigSpec("print_maps_on_exit", "bool", True, "Print all maps that are not empty when tracing ends."),
    ConfigSpec("show_debug_info", "bool", True, "Add file and line to stack frames where debug information has them."),
    ConfigSpec("stack_mode", "choice", "bpftrace", "Default format of kstack and ustack.", STACK_MODES),
    ConfigSpec("str_trunc_trailer", "string", "..", "Appended to strings that were cut; empty for nothing."),
    ConfigSpec("use_blazesym", "bool", True, "Accepted for scripts that set it; symbols are looked up the same way."),
    ConfigSpec("unstable_dw_ustack", "choice", "warn", "Whether dw_ustack() may be used.", _UNSTABLE),
    ConfigSpec("unstable_import_statement", "choice", "error", "Whether import may be used as a statement.", _UNSTABLE),
    ConfigSpec("unstable_tseries", "choice", "warn", "Whether tseries() may be used.", _UNSTABLE),
    ConfigSpec("unstable_typeinfo", "choice", "error", "Whether typeinfo() may be used.", _UNSTABLE),
)

CONFIG: dict[str, ConfigSpec] = {row.name: row for row in _ROWS}

# Old name: new name; accepted with a warning.
RENAMED = {
    "strlen": "max_strlen",
    "no_cpp_demangle": "cpp_demangle",
    "cat_bytes_max": "max_cat_bytes",
    "map_keys_max": "max_map_keys",
}

# Without effect any more; accepted with a warning.
OBSOLETE = frozenset(
    {
        "symbol_source",
        "max_type_res_iterations",
        "unstable_addr",
        "unstable_import",
        "unstable_macro",
        "unstable_map_decl",
    }
)

# Settings of the process that a script cannot change.
ENVIRONMENT_ONLY = frozenset({"btf", "kernel_build", "kernel_source", "vmlinux"})
