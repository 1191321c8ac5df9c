"""Kernel helpers as the code generator calls them: number, result, what LLVM may assume.

Numbers from `include/uapi/linux/bpf.h`. The memory column is in LLVM's terms, seen from the program: "none" (depends
on nothing that changes while a program runs: calls can be merged and dropped), "inside" (only state of the kernel:
stores around it stay in place), "read", "writes" (reads anything, writes only through its pointer arguments), "" (may
do anything to memory that it can reach).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from bpfseal.compiler.ir import I64, PTR


class Helper(NamedTuple):
    id: int
    memory: str = ""
    returns: str = I64


MEMORY: Final = {
    "none": "memory(none) ",
    "inside": "memory(inaccessiblemem: readwrite) ",
    "read": "memory(read) ",
    "writes": "memory(read, argmem: readwrite, inaccessiblemem: readwrite) ",
    "": "",
}

HELPERS: Final[dict[str, Helper]] = {
    "map_lookup_elem": Helper(1, "read", PTR),
    "map_update_elem": Helper(2),
    "map_delete_elem": Helper(3),
    "probe_read": Helper(4, "writes"),
    "ktime_get_ns": Helper(5, "inside"),
    "trace_printk": Helper(6),
    "get_prandom_u32": Helper(7, "inside"),
    "get_smp_processor_id": Helper(8, "none"),
    "get_current_pid_tgid": Helper(14, "none"),
    "get_current_uid_gid": Helper(15, "none"),
    "get_current_comm": Helper(16, "writes"),
    "skb_load_bytes": Helper(26, "writes"),
    "get_stackid": Helper(27, "inside"),
    "probe_write_user": Helper(36),
    "get_numa_node_id": Helper(42, "none"),
    "probe_read_str": Helper(45, "writes"),
    "get_socket_cookie": Helper(46, "inside"),
    "override_return": Helper(58),
    "get_stack": Helper(67, "writes"),
    "get_current_cgroup_id": Helper(80, "none"),
    "send_signal": Helper(109, "inside"),
    "skb_output": Helper(111),
    "probe_read_user": Helper(112, "writes"),
    "probe_read_kernel": Helper(113, "writes"),
    "probe_read_user_str": Helper(114, "writes"),
    "probe_read_kernel_str": Helper(115, "writes"),
    "send_signal_thread": Helper(117, "inside"),
    "jiffies64": Helper(118, "inside"),
    "get_ns_current_pid_tgid": Helper(120, "writes"),
    "ktime_get_boot_ns": Helper(125, "inside"),
    "ringbuf_output": Helper(130),
    "ringbuf_reserve": Helper(131, "inside", PTR),
    "ringbuf_submit": Helper(132),
    "ringbuf_discard": Helper(133),
    "d_path": Helper(147, "writes"),
    "get_current_task_btf": Helper(158, "none", PTR),
    "copy_from_user": Helper(148, "writes"),
    "per_cpu_ptr": Helper(153, "none", PTR),
    "this_cpu_ptr": Helper(154, "none", PTR),
    "for_each_map_elem": Helper(164),
    "get_func_ip": Helper(173, "none"),
    "get_attach_cookie": Helper(174, "none"),
    "task_pt_regs": Helper(175, "none", PTR),
    "loop": Helper(181),
    "get_func_ret": Helper(184, "writes"),
    "xdp_load_bytes": Helper(189, "writes"),
    "map_lookup_percpu_elem": Helper(195, "read", PTR),
    "ktime_get_tai_ns": Helper(208, "inside"),
}
