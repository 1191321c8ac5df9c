/* Tracepoint: hash map, constant, variable, subprogram. */
#include "common.h"
struct { __uint(type, 1); __uint(max_entries, 64); __type(key, u32); __type(value, u64); } counts SEC(".maps");
const volatile u32 limit = 7;
u64 total;
static __attribute__((noinline)) u64 add(u64 n)
{
	__sync_fetch_and_add(&total, n);
	return total;
}
SEC("tracepoint/syscalls/sys_enter_openat") int opens(void *ctx)
{
	u32 key = limit;
	u64 one = 1, *value = map_lookup(&counts, &key);
	if (value)
		__sync_fetch_and_add(value, 1);
	else
		map_update(&counts, &key, &one, 0);
	add(1);
	return 0;
}
