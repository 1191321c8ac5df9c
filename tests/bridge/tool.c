/* Tools that know bpf(2) and nothing else. tool MODE NAME */
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *name;

static int bpf(int cmd, union bpf_attr *attr, unsigned size) { return syscall(SYS_bpf, cmd, attr, size); }

static struct bpf_insn insn(uint8_t code, int dst, int src, int16_t off, int32_t imm)
{
	return (struct bpf_insn){ .code = code, .dst_reg = dst, .src_reg = src, .off = off, .imm = imm };
}

static int load(const struct bpf_insn *insns, unsigned count)
{
	union bpf_attr attr = { 0 };
	attr.prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT;
	attr.insns = (uintptr_t)insns;
	attr.insn_cnt = count;
	attr.license = (uintptr_t)"GPL";
	strncpy(attr.prog_name, name, sizeof(attr.prog_name) - 1);
	return bpf(BPF_PROG_LOAD, &attr, sizeof(attr));
}

static int array(void)
{
	union bpf_attr attr = { 0 };
	attr.map_type = BPF_MAP_TYPE_ARRAY;
	attr.key_size = 4;
	attr.value_size = 8;
	attr.max_entries = 1;
	strncpy(attr.map_name, name, sizeof(attr.map_name) - 1);
	return bpf(BPF_MAP_CREATE, &attr, sizeof(attr));
}

static int run(int fd)
{
	union bpf_attr attr = { 0 };
	attr.test.prog_fd = fd;
	if (bpf(BPF_PROG_TEST_RUN, &attr, sizeof(attr)))
		return -errno;
	return attr.test.retval;
}

/* Adds 3 to the only value of a map, through its address. */
static int adding(int map)
{
	struct bpf_insn code[] = {
		insn(0x18, 1, BPF_PSEUDO_MAP_VALUE, 0, map), insn(0, 0, 0, 0, 0), insn(0xb7, 2, 0, 0, 3),
		insn(0xdb, 1, 2, 0, 0), insn(0xb7, 0, 0, 0, 0), insn(0x95, 0, 0, 0, 0),
	};
	return load(code, 6);
}

static int count(void)
{
	int map = array(), prog = adding(map);
	uint32_t key = 0;
	uint64_t value = 0;
	if (prog < 0)
		return printf("load: %s\n", strerror(errno)), 1;
	for (int i = 0; i < 5; i++)
		run(prog);
	union bpf_attr attr = { 0 };
	attr.map_fd = map;
	attr.key = (uintptr_t)&key;
	attr.value = (uintptr_t)&value;
	bpf(BPF_MAP_LOOKUP_ELEM, &attr, sizeof(attr));
	printf("value %d, cloexec %d\n", (int)value, fcntl(prog, F_GETFD) & FD_CLOEXEC);
	return 0;
}

/* One thread changes an instruction all the time; a program with the call in it must never come back. */
static _Alignas(16) struct bpf_insn racing[2];
static volatile int stop;

static void *change(void *unused)
{
	struct bpf_insn innocent = insn(0xb7, 0, 0, 0, 0), call = insn(0x85, 0, 0, 0, BPF_FUNC_ktime_get_ns);
	uint64_t a, b;
	memcpy(&a, &innocent, 8);
	memcpy(&b, &call, 8);
	for (uint64_t n = 0; !stop; n++)
		*(volatile uint64_t *)racing = n & 1 ? a : b;
	return 0;
}

static int race(int rounds)
{
	pthread_t thread;
	int loaded = 0, refused = 0, broken = 0, other = 0;
	racing[1] = insn(0x95, 0, 0, 0, 0);
	pthread_create(&thread, 0, change, 0);
	for (int i = 0; i < rounds; i++) {
		int fd = load(racing, 2);
		if (fd < 0) {
			errno == EPERM ? refused++ : other++;
			continue;
		}
		loaded++;
		struct bpf_insn out[8];
		struct bpf_prog_info info = { .xlated_prog_len = sizeof(out), .xlated_prog_insns = (uintptr_t)out };
		union bpf_attr attr = { 0 };
		attr.info.bpf_fd = fd;
		attr.info.info_len = sizeof(info);
		attr.info.info = (uintptr_t)&info;
		if (bpf(BPF_OBJ_GET_INFO_BY_FD, &attr, sizeof(attr)) || info.xlated_prog_len != 16 || out[0].code != 0xb7)
			broken++;
		close(fd);
	}
	stop = 1;
	pthread_join(thread, 0);
	printf("{\"loaded\": %d, \"refused\": %d, \"broken\": %d, \"other\": %d}\n", loaded, refused, broken, other);
	return 0;
}

static void *several(void *failures)
{
	for (int i = 0; i < 10; i++) {
		int map = array(), prog = adding(map);
		if (prog < 0 || run(prog))
			__atomic_add_fetch((int *)failures, 1, __ATOMIC_SEQ_CST);
		close(prog);
		close(map);
	}
	return 0;
}

static int threads(void)
{
	pthread_t all[4];
	int failures = 0, status = 0;
	pid_t child = fork();
	for (int i = 0; i < 4; i++)
		pthread_create(&all[i], 0, several, &failures);
	for (int i = 0; i < 4; i++)
		pthread_join(all[i], 0);
	if (!child)
		_exit(failures);
	waitpid(child, &status, 0);
	printf("failures %d, of the child %d\n", failures, WEXITSTATUS(status));
	return 0;
}

/* The 32-bit number of the call, from a 64-bit process. */
static int compat(void)
{
#ifdef __x86_64__
	char *low = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	union bpf_attr *attr = (void *)low;
	struct bpf_insn code[] = { insn(0xb7, 0, 0, 0, 0), insn(0x95, 0, 0, 0, 0) };
	long result;
	memcpy(low + 1024, code, sizeof(code));
	strcpy(low + 2048, "GPL");
	strncpy(attr->prog_name, name, sizeof(attr->prog_name) - 1);
	attr->prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT;
	attr->insns = (uintptr_t)low + 1024;
	attr->insn_cnt = 2;
	attr->license = (uintptr_t)low + 2048;
	__asm__ volatile("int $0x80" : "=a"(result)
			 : "a"(357), "b"((long)BPF_PROG_LOAD), "c"((long)low), "d"((long)sizeof(*attr)) : "memory", "r8", "r9",
			   "r10", "r11");
	printf("%s\n", result >= 0 ? "loaded" : strerror(-result));
	return 0;
#else
	puts("no such call");
	return 0;
#endif
}

static void wait_for_signals(void)
{
	int map = array(), prog = adding(map);
	printf("ready %d\n", prog >= 0);
	fflush(stdout);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	name = argc > 2 ? argv[2] : "tool";
	if (!strcmp(argv[1], "count"))
		return count();
	if (!strcmp(argv[1], "race"))
		return race(atoi(argv[3]));
	if (!strcmp(argv[1], "threads"))
		return threads();
	if (!strcmp(argv[1], "compat"))
		return compat();
	if (!strcmp(argv[1], "wait"))
		wait_for_signals();
	return 2;
}
