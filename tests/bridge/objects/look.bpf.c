/* tc: counts packets and lets them go on. */
#include "common.h"
struct { __uint(type, 2); __uint(max_entries, 1); __type(key, u32); __type(value, u64); } packets SEC(".maps");
SEC("classifier") int look(void *ctx)
{
	u32 key = 0;
	u64 *value = map_lookup(&packets, &key);
	if (value)
		__sync_fetch_and_add(value, 1);
	return 0;
}
