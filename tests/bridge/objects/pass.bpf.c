/* XDP: counts packets and lets them go on. */
#include "common.h"
struct { __uint(type, 2); __uint(max_entries, 1); __type(key, u32); __type(value, u64); } packets SEC(".maps");
struct xdp_md { u32 data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex; };
SEC("xdp") int pass(struct xdp_md *ctx)
{
	u32 key = 0;
	u64 *value = map_lookup(&packets, &key);
	if (value)
		__sync_fetch_and_add(value, 1);
	return 2;
}
