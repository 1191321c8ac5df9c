"""Tables of the kernel's names and numbers: helpers with what they can do, map types, program and attach types.

Numbers and names from `include/uapi/linux/bpf.h`; argument positions from the `bpf_func_proto` of each helper.
A number that is not in here is refused, so a newer kernel's additions need an entry before they can be signed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

CLASSES: Final[Mapping[str, str]] = {
    "basic": "no side effects: random numbers, CPU number, strings, context, loops",
    "time": "clocks",
    "identity": "pid, uid, command name, cgroup of the current task",
    "map": "maps and local storage",
    "output": "ring buffer, perf buffer, iterator output, trace pipe",
    "stack": "stack traces",
    "perf": "performance counters and branch records",
    "read-kernel": "kernel memory and addresses",
    "read-user": "user memory",
    "write-user": "writes user memory",
    "override": "changes what a kernel function returns or does",
    "signal": "sends signals",
    "async": "timers, work queues",
    "deferred": "work that runs later in a task's own context, where it may sleep",
    "kptr": "kernel objects kept in maps",
    "read-packet": "packets of a network interface, without changing them",
    "network": "packets and sockets, reading and changing",
    "tail-call": "goes on in another program of a program array, whichever is there then",
    "control": "loads programs, looks up symbols",
}


class Helper(NamedTuple):
    """One helper.

    name          without `bpf_`
    classes       keys of CLASSES
    map_arg       argument (1-5) that is a map, 0 for none
    map_ops       what the call does to that map, as in bundle.Attributes.maps
    writes        bit i is set if the memory that argument i points to may be written
    callback_arg  argument that is a function, 0 for none
    value         whether the result points into a value of the map
    """

    id: int
    name: str
    classes: tuple[str, ...]
    map_arg: int
    map_ops: tuple[str, ...]
    writes: int
    callback_arg: int
    value: bool


# number, name, classes; then mN=ops: map in argument N; wN: writes memory of argument N; cN: callback; v: result
# is a map value.
_HELPERS: Final = """
1 map_lookup_elem map m1=read v
2 map_update_elem map m1=write
3 map_delete_elem map m1=delete
4 probe_read read-kernel,read-user w1
5 ktime_get_ns time
6 trace_printk output
7 get_prandom_u32 basic
8 get_smp_processor_id basic
9 skb_store_bytes network
10 l3_csum_replace network
11 l4_csum_replace network
12 tail_call tail-call m2=read
13 clone_redirect network
14 get_current_pid_tgid identity
15 get_current_uid_gid identity
16 get_current_comm identity w1
17 get_cgroup_classid identity
18 skb_vlan_push network
19 skb_vlan_pop network
20 skb_get_tunnel_key network w2
21 skb_set_tunnel_key network
22 perf_event_read perf m1=read
23 redirect network
24 get_route_realm network
25 perf_event_output output m2=output
26 skb_load_bytes read-packet w3
27 get_stackid stack m2=write
28 csum_diff network
29 skb_get_tunnel_opt network w2
30 skb_set_tunnel_opt network
31 skb_change_proto network
32 skb_change_type network
33 skb_under_cgroup network m2=read
34 get_hash_recalc network
35 get_current_task read-kernel
36 probe_write_user write-user
37 current_task_under_cgroup identity m1=read
38 skb_change_tail network
39 skb_pull_data network
40 csum_update network
41 set_hash_invalid network
42 get_numa_node_id basic
43 skb_change_head network
44 xdp_adjust_head network
45 probe_read_str read-kernel,read-user w1
46 get_socket_cookie network
47 get_socket_uid network
48 set_hash network
49 setsockopt network
50 skb_adjust_room network
51 redirect_map network m1=read
52 sk_redirect_map network m2=read
53 sock_map_update network m2=write w3
54 xdp_adjust_meta network
55 perf_event_read_value perf m1=read w3
56 perf_prog_read_value perf w2
57 getsockopt network w4
58 override_return override
59 sock_ops_cb_flags_set network
60 msg_redirect_map network m2=read
61 msg_apply_bytes network
62 msg_cork_bytes network
63 msg_pull_data network
64 bind network
65 xdp_adjust_tail network
66 skb_get_xfrm_state network w3
67 get_stack stack w2
68 skb_load_bytes_relative read-packet w3
69 fib_lookup network w2
70 sock_hash_update network m2=write w3
71 msg_redirect_hash network m2=read w3
72 sk_redirect_hash network m2=read w3
73 lwt_push_encap network
74 lwt_seg6_store_bytes network
75 lwt_seg6_adjust_srh network
76 lwt_seg6_action network
77 rc_repeat network
78 rc_keydown network
79 skb_cgroup_id network
80 get_current_cgroup_id identity
81 get_local_storage map m1=read,write v
82 sk_select_reuseport network m2=read w3
83 skb_ancestor_cgroup_id network
84 sk_lookup_tcp network
85 sk_lookup_udp network
86 sk_release network
87 map_push_elem map m1=write
88 map_pop_elem map m1=read,delete w2
89 map_peek_elem map m1=read w2
90 msg_push_data network
91 msg_pop_data network
92 rc_pointer_rel network
93 spin_lock map w1
94 spin_unlock map w1
95 sk_fullsock network
96 tcp_sock network
97 skb_ecn_set_ce network
98 get_listener_sock network
99 skc_lookup_tcp network
100 tcp_check_syncookie network
101 sysctl_get_name control w2
102 sysctl_get_current_value control w2
103 sysctl_get_new_value control w2
104 sysctl_set_new_value override
105 strtol basic w4
106 strtoul basic w4
107 sk_storage_get map m1=read,write v
108 sk_storage_delete map m1=delete
109 send_signal signal
110 tcp_gen_syncookie network
111 skb_output output m2=output
112 probe_read_user read-user w1
113 probe_read_kernel read-kernel w1
114 probe_read_user_str read-user w1
115 probe_read_kernel_str read-kernel w1
116 tcp_send_ack network
117 send_signal_thread signal
118 jiffies64 time
119 read_branch_records perf w2
120 get_ns_current_pid_tgid identity w3
121 xdp_output output m2=output
122 get_netns_cookie network
123 get_current_ancestor_cgroup_id identity
124 sk_assign network
125 ktime_get_boot_ns time
126 seq_printf output
127 seq_write output
128 sk_cgroup_id network
129 sk_ancestor_cgroup_id network
130 ringbuf_output output m1=output
131 ringbuf_reserve output m1=output
132 ringbuf_submit output
133 ringbuf_discard output
134 ringbuf_query output m1=read
135 csum_level network
136 skc_to_tcp6_sock read-kernel
137 skc_to_tcp_sock read-kernel
138 skc_to_tcp_timewait_sock read-kernel
139 skc_to_tcp_request_sock read-kernel
140 skc_to_udp6_sock read-kernel
141 get_task_stack stack w2
142 load_hdr_opt network w2
143 store_hdr_opt network
144 reserve_hdr_opt network
145 inode_storage_get map m1=read,write v
146 inode_storage_delete map m1=delete
147 d_path read-kernel w2
148 copy_from_user read-user w1
149 snprintf_btf read-kernel w1
150 seq_printf_btf output,read-kernel
151 skb_cgroup_classid network
152 redirect_neigh network
153 per_cpu_ptr read-kernel
154 this_cpu_ptr read-kernel
155 redirect_peer network
156 task_storage_get map m1=read,write v
157 task_storage_delete map m1=delete
158 get_current_task_btf read-kernel
159 bprm_opts_set override
160 ktime_get_coarse_ns time
161 ima_inode_hash read-kernel w2
162 sock_from_file read-kernel
163 check_mtu network w3
164 for_each_map_elem map m1=iterate c2
165 snprintf basic w1
166 sys_bpf control w2
167 btf_find_by_name_kind control
168 sys_close control
169 timer_init async m2=write w1
170 timer_set_callback async w1 c2
171 timer_start async w1
172 timer_cancel async w1
173 get_func_ip basic
174 get_attach_cookie basic
175 task_pt_regs read-kernel
176 get_branch_snapshot perf w1
177 trace_vprintk output
178 skc_to_unix_sock read-kernel
179 kallsyms_lookup_name control w4
180 find_vma read-kernel c3
181 loop basic c2
182 strncmp basic
183 get_func_arg basic w3
184 get_func_ret basic w2
185 get_func_arg_cnt basic
186 get_retval basic
187 set_retval override
188 xdp_get_buff_len read-packet
189 xdp_load_bytes read-packet w3
190 xdp_store_bytes network
191 copy_from_user_task read-user w1
192 skb_set_tstamp network
193 ima_file_hash read-kernel w2
194 kptr_xchg kptr w1
195 map_lookup_percpu_elem map m1=read v
196 skc_to_mptcp_sock read-kernel
197 dynptr_from_mem basic w1 w4
198 ringbuf_reserve_dynptr output m1=output w4
199 ringbuf_submit_dynptr output w1
200 ringbuf_discard_dynptr output w1
201 dynptr_read basic w1
202 dynptr_write basic w1
203 dynptr_data basic
204 tcp_raw_gen_syncookie_ipv4 network
205 tcp_raw_gen_syncookie_ipv6 network
206 tcp_raw_check_syncookie_ipv4 network
207 tcp_raw_check_syncookie_ipv6 network
208 ktime_get_tai_ns time
209 user_ringbuf_drain control m1=read c2
210 cgrp_storage_get map m1=read,write v
211 cgrp_storage_delete map m1=delete
"""


def _helper(line: str) -> Helper:
    number, name, classes, *rest = line.split()
    map_arg, writes, callback = 0, 0, 0
    ops: tuple[str, ...] = ()
    for word in rest:
        if word[0] == "m":
            map_arg, ops = int(word[1]), tuple(word[3:].split(","))
        elif word[0] == "w":
            writes |= 1 << int(word[1])
        elif word[0] == "c":
            callback = int(word[1])
    return Helper(int(number), name, tuple(classes.split(",")), map_arg, ops, writes, callback, "v" in rest)


HELPERS: Final[Mapping[int, Helper]] = {h.id: h for h in map(_helper, _HELPERS.strip().splitlines())}
HELPER_BY_NAME: Final[Mapping[str, Helper]] = {h.name: h for h in HELPERS.values()}

# Numbers that no helper will ever have, in thousands: libbpf puts calls of them where a program uses a member, a map or
# a kfunc that this kernel does not have (bpf_core_poison_insn in its src/relo_core.c, POISON_* in src/libbpf.c).
# The verifier refuses a program that can get there; those that ask first, cannot.
_POISON: Final = (195_896, 2_001_000, 2_002_000)


def is_poison(id: int) -> bool:
    """Whether a call of helper `id` stands for something that is not there."""
    return id // 1000 in _POISON


# Never signed: what these reach was not analysed (other programs, anything that bpf(2) can do).
FORBIDDEN_HELPERS: Final = frozenset(("sys_bpf", "sys_close", "user_ringbuf_drain"))

# Classes of kfuncs that do more than their name must say; policy grants kfuncs by name in any case.
KFUNC_CLASSES: Final[Mapping[str, str]] = {
    "bpf_send_signal_task": "signal",
    "bpf_copy_from_user_str": "read-user",
    "bpf_copy_from_user_task_str": "read-user",
    "bpf_copy_from_user_dynptr": "read-user",
    "bpf_copy_from_user_str_dynptr": "read-user",
    "bpf_copy_from_user_task_dynptr": "read-user",
    "bpf_copy_from_user_task_str_dynptr": "read-user",
    "bpf_probe_read_user_dynptr": "read-user",
    "bpf_probe_read_user_str_dynptr": "read-user",
    "bpf_probe_read_kernel_dynptr": "read-kernel",
    "bpf_probe_read_kernel_str_dynptr": "read-kernel",
    "bpf_rdonly_cast": "read-kernel",
    "bpf_task_work_schedule_signal": "deferred",
    "bpf_task_work_schedule_resume": "deferred",
    "bpf_task_work_schedule_signal_impl": "deferred",
    "bpf_task_work_schedule_resume_impl": "deferred",
    "bpf_wq_init": "async",
    "bpf_wq_start": "async",
    "bpf_wq_set_callback": "async",
    "bpf_wq_set_callback_impl": "async",
    "bpf_set_dentry_xattr": "override",
    "bpf_remove_dentry_xattr": "override",
    "bpf_kptr_xchg": "kptr",
    "bpf_obj_new_impl": "kptr",
    "bpf_percpu_obj_new_impl": "kptr",
    "bpf_obj_drop_impl": "kptr",
    "bpf_refcount_acquire_impl": "kptr",
}

MAP_OPS: Final = frozenset(("read", "write", "delete", "iterate", "output"))

# Map flags
NO_PREALLOC, NO_COMMON_LRU, NUMA_NODE, RDONLY, WRONLY, STACK_BUILD_ID = (1 << i for i in range(6))
RDONLY_PROG, WRONLY_PROG, MMAPABLE, PRESERVE_ELEMS = 1 << 7, 1 << 8, 1 << 10, 1 << 11
_ACCESS: Final = RDONLY_PROG | WRONLY_PROG


class MapType(NamedTuple):
    """One map type that can be signed.

    flags   flags that the helper knows for it
    key     exact key size, or -1 for any but 0
    value   exact value size, or -1 for any but 0
    percpu  whether there is a value for each possible CPU
    shape   "array", "hash", "ring" (entries are bytes), "storage" (no entries), "queue"
    new     why a new one is refused, "" if it is not: those are filled from user space, with descriptors
    maps    values are other maps (the verifier calls a pointer to a value CONST_PTR_TO_MAP)
    objects values that programs get are kernel objects, sockets
    """

    id: int
    name: str
    shape: str
    key: int
    value: int
    flags: int
    percpu: bool = False
    new: str = ""
    maps: bool = False
    objects: bool = False


_FILLED: Final = "only existing ones, which user space has filled"
MAP_TYPES: Final[Mapping[int, MapType]] = {
    t.id: t
    for t in (
        MapType(1, "hash", "hash", -1, -1, NO_PREALLOC | _ACCESS),
        MapType(2, "array", "array", 4, -1, MMAPABLE | _ACCESS),
        MapType(3, "prog_array", "array", 4, 4, 0, new="there is nothing to fill a new one with"),
        MapType(4, "perf_event_array", "array", 4, 4, PRESERVE_ELEMS),
        MapType(5, "percpu_hash", "hash", -1, -1, NO_PREALLOC | _ACCESS, percpu=True),
        MapType(6, "percpu_array", "array", 4, -1, _ACCESS, percpu=True),
        MapType(7, "stack_trace", "hash", 4, -1, STACK_BUILD_ID),
        MapType(8, "cgroup_array", "array", 4, 4, 0),
        MapType(9, "lru_hash", "hash", -1, -1, NO_COMMON_LRU | _ACCESS),
        MapType(10, "lru_percpu_hash", "hash", -1, -1, NO_COMMON_LRU | _ACCESS, percpu=True),
        MapType(11, "lpm_trie", "hash", -1, -1, NO_PREALLOC | _ACCESS),
        MapType(12, "array_of_maps", "array", 4, 4, 0, new=_FILLED, maps=True),
        MapType(13, "hash_of_maps", "hash", -1, 4, 0, new=_FILLED, maps=True),
        MapType(14, "devmap", "array", 4, -1, 0, new=_FILLED),
        MapType(15, "sockmap", "array", 4, -1, 0, new=_FILLED, objects=True),
        MapType(16, "cpumap", "array", 4, -1, 0, new=_FILLED),
        MapType(17, "xskmap", "array", 4, 4, 0, new=_FILLED, objects=True),
        MapType(18, "sockhash", "hash", -1, -1, 0, new=_FILLED, objects=True),
        MapType(22, "queue", "queue", 0, -1, _ACCESS),
        MapType(23, "stack", "queue", 0, -1, _ACCESS),
        MapType(24, "sk_storage", "storage", 4, -1, NO_PREALLOC),
        MapType(25, "devmap_hash", "hash", 4, -1, 0, new=_FILLED),
        MapType(27, "ringbuf", "ring", 0, 0, 0),
        MapType(28, "inode_storage", "storage", 4, -1, NO_PREALLOC),
        MapType(29, "task_storage", "storage", 4, -1, NO_PREALLOC),
        MapType(30, "bloom_filter", "queue", 0, -1, _ACCESS),
        MapType(32, "cgrp_storage", "storage", 4, -1, NO_PREALLOC),
    )
}
MAP_TYPE_BY_NAME: Final[Mapping[str, MapType]] = {t.name: t for t in MAP_TYPES.values()}

# Why the other types are refused, for the message.
REFUSED_MAP_TYPES: Final[Mapping[int, str]] = {
    19: "cgroup_storage: deprecated",
    20: "reuseport_sockarray",
    21: "percpu_cgroup_storage: deprecated",
    26: "struct_ops: replaces kernel functions",
    31: "user_ringbuf: its callbacks are not modelled",
    33: "arena: memory shared with user space is not modelled",
    34: "insn_array: jumps through it are not modelled",
    35: "rhash",
}

# Program types
SCHED_CLS, TRACEPOINT, XDP, PERF_EVENT, RAW_TRACEPOINT = 3, 5, 6, 7, 17
SOCKET_FILTER, KPROBE, TRACING, EXT, LSM, SYSCALL = 1, 2, 26, 28, 29, 31
CGROUP_SKB, CGROUP_SOCK, SOCK_OPS, CGROUP_DEVICE, CGROUP_SOCK_ADDR = 8, 9, 13, 15, 18
CGROUP_SYSCTL, CGROUP_SOCKOPT = 23, 25
PROGRAM_TYPES: Final[Mapping[int, str]] = {
    SOCKET_FILTER: "socket_filter",
    KPROBE: "kprobe",
    SCHED_CLS: "sched_cls",
    TRACEPOINT: "tracepoint",
    XDP: "xdp",
    PERF_EVENT: "perf_event",
    CGROUP_SKB: "cgroup_skb",
    CGROUP_SOCK: "cgroup_sock",
    SOCK_OPS: "sock_ops",
    CGROUP_DEVICE: "cgroup_device",
    RAW_TRACEPOINT: "raw_tracepoint",
    CGROUP_SOCK_ADDR: "cgroup_sock_addr",
    CGROUP_SYSCTL: "cgroup_sysctl",
    CGROUP_SOCKOPT: "cgroup_sockopt",
    TRACING: "tracing",
    EXT: "ext",
    LSM: "lsm",
    SYSCALL: "syscall",
}

# Expected attach types. Those of cgroups begin with 0, which for every other type stands for none.
CGROUP_ATTACH: Final[Mapping[int, Mapping[int, str]]] = {
    CGROUP_SKB: {0: "cgroup_inet_ingress", 1: "cgroup_inet_egress"},
    CGROUP_SOCK: {
        2: "cgroup_inet_sock_create",
        12: "cgroup_inet4_post_bind",
        13: "cgroup_inet6_post_bind",
        34: "cgroup_inet_sock_release",
    },
    SOCK_OPS: {3: "cgroup_sock_ops"},
    CGROUP_DEVICE: {6: "cgroup_device"},
    CGROUP_SOCK_ADDR: {
        8: "cgroup_inet4_bind",
        9: "cgroup_inet6_bind",
        10: "cgroup_inet4_connect",
        11: "cgroup_inet6_connect",
        14: "cgroup_udp4_sendmsg",
        15: "cgroup_udp6_sendmsg",
        19: "cgroup_udp4_recvmsg",
        20: "cgroup_udp6_recvmsg",
        29: "cgroup_inet4_getpeername",
        30: "cgroup_inet6_getpeername",
        31: "cgroup_inet4_getsockname",
        32: "cgroup_inet6_getsockname",
        49: "cgroup_unix_connect",
        50: "cgroup_unix_sendmsg",
        51: "cgroup_unix_recvmsg",
        52: "cgroup_unix_getpeername",
        53: "cgroup_unix_getsockname",
    },
    CGROUP_SYSCTL: {18: "cgroup_sysctl"},
    CGROUP_SOCKOPT: {21: "cgroup_getsockopt", 22: "cgroup_setsockopt"},
}
TRACE_RAW_TP, TRACE_FENTRY, TRACE_FEXIT, MODIFY_RETURN, LSM_MAC, TRACE_ITER = range(23, 29)
ATTACH_XDP, ATTACH_PERF_EVENT, KPROBE_MULTI, TCX_INGRESS, TCX_EGRESS, UPROBE_MULTI = 37, 41, 42, 46, 47, 48
KPROBE_SESSION, UPROBE_SESSION, TRACE_FSESSION = 56, 57, 58
ATTACH_TYPES: Final[Mapping[int, str]] = {
    0: "",
    TRACE_RAW_TP: "tp_btf",
    TRACE_FENTRY: "fentry",
    TRACE_FEXIT: "fexit",
    MODIFY_RETURN: "fmod_ret",
    LSM_MAC: "lsm",
    TRACE_ITER: "iter",
    ATTACH_XDP: "xdp",
    ATTACH_PERF_EVENT: "perf_event",
    KPROBE_MULTI: "kprobe_multi",
    TCX_INGRESS: "tcx_ingress",
    TCX_EGRESS: "tcx_egress",
    UPROBE_MULTI: "uprobe_multi",
    KPROBE_SESSION: "kprobe_session",
    UPROBE_SESSION: "uprobe_session",
    TRACE_FSESSION: "fsession",
} | {number: name for table in CGROUP_ATTACH.values() for number, name in table.items() if number}

SLEEPABLE: Final = 1 << 4
PROGRAM_FLAGS: Final = SLEEPABLE | 1 << 5  # XDP_HAS_FRAGS; the others are for tests or switch checks off

# include/linux/license.h
GPL_LICENSES: Final = frozenset(
    ("GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL")
)


@functools.cache
def possible_cpus() -> int:
    """Number of possible CPUs, the factor of per-CPU maps. Lists like `0-3,8` as in `/sys/devices/system/cpu`."""
    try:
        ranges = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")
        return sum(int(last or first) - int(first) + 1 for first, _, last in (r.partition("-") for r in ranges))
    except (OSError, ValueError):
        return 8192  # CONFIG_NR_CPUS of distribution kernels: too much rather than too little
