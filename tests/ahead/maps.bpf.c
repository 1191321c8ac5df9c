#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 64); __type(key, __u32); __type(value, __u64); } counts SEC(".maps");
const volatile __u32 limit = 7;
__u64 total;
static __attribute__((noinline)) __u64 add(__u64 n) { __sync_fetch_and_add(&total, n); return total; }
SEC("tracepoint/syscalls/sys_enter_openat")
int opens(void *ctx) { __u32 key = limit; __u64 one = 1, *v = bpf_map_lookup_elem(&counts, &key);
 if (v) __sync_fetch_and_add(v, 1); else bpf_map_update_elem(&counts, &key, &one, 0); add(1); return 0; }
char LICENSE[] SEC("license") = "GPL";
