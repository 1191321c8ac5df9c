/* XDP: counts packets by length in a map of maps; those of one byte go on through a map of devices or of processors. */
#include "common.h"
static long (*redirect_map)(void *map, u64 key, u64 flags) = (void *)51;
struct inner { __uint(type, 1); __uint(max_entries, 16); __type(key, u32); __type(value, u64); };
struct inner first SEC(".maps");
struct {
	__uint(type, 13);
	__uint(max_entries, 4);
	__type(key, u32);
	__array(values, struct inner);
} outer SEC(".maps") = { .values = { [0] = &first } };
struct { __uint(type, 14); __uint(max_entries, 4); __type(key, u32); __type(value, u64); } devices SEC(".maps");
struct { __uint(type, 16); __uint(max_entries, 4); __type(key, u32); __type(value, u64); } processors SEC(".maps");
struct xdp_md { u32 data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex; };
SEC("xdp") int send(struct xdp_md *ctx)
{
	u32 key = 0, length = ctx->data_end - ctx->data;
	u64 one = 1, *value;
	void *inner = map_lookup(&outer, &key);
	if (inner) {
		value = map_lookup(inner, &length);
		if (value)
			__sync_fetch_and_add(value, 1);
		else
			map_update(inner, &length, &one, 0);
	}
	if (length == 1)
		return redirect_map(&devices, 0, 2);
	if (length == 2)
		return redirect_map(&processors, 0, 2);
	return 2;
}
