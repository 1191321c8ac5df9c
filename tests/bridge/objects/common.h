/* What the objects need of the kernel's and libbpf's headers, so that they build without either. */
#define SEC(n) __attribute__((section(n), used))
#define __uint(name, val) int (*name)[val]
#define __type(name, val) val *name
#define __array(name, val) __typeof__(val) *name[]
typedef unsigned int u32;
typedef unsigned long long u64;
static void *(*map_lookup)(void *, const void *) = (void *)1;
static long (*map_update)(void *, const void *, const void *, u64) = (void *)2;
char LICENSE[] SEC("license") = "GPL";
