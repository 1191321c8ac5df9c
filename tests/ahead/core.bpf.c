/* CO-RE of every kind. Types are cut down or wrong on purpose: the kernel's own have other offsets. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#define CORE __attribute__((preserve_access_index))

struct list_head { struct list_head *next, *prev; } CORE;
struct task_struct { int pid, tgid; struct task_struct *group_leader; char comm[16]; unsigned sched_migrated : 1; } CORE;
struct task_struct___old { int pid_of_old; } CORE;
struct task_struct___other { unsigned no_cgroup_migration : 1; int tgid; } CORE;
struct nothing_of_the_kind { int x; } CORE;
struct qspinlock { union { int val; struct { unsigned char locked, pending; }; }; } CORE;
enum pid_type { PIDTYPE_PID = 7, PIDTYPE_TGID = 9, PIDTYPE_SID = 11 };
enum pid_type___odd { PIDTYPE_NONE___odd = 5 };

int pid, tgid, leader, exists, missing_field, missing_type, size, enumerator, no_enumerator, bitfield, pending, ids;
char comm[16];

SEC("raw_tp/sys_enter")
int core(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct task_struct___other *other = (void *)task;
	struct task_struct___old *old = (void *)task;
	struct qspinlock *lock = (void *)task;

	tgid = BPF_CORE_READ(task, tgid);
	pid = BPF_CORE_READ(task, pid);
	leader = BPF_CORE_READ(task, group_leader, tgid);
	bpf_core_read(comm, sizeof comm, &task->comm);
	exists = bpf_core_field_exists(task->group_leader);
	missing_field = bpf_core_field_exists(old->pid_of_old);
	if (bpf_core_field_exists(old->pid_of_old))
		pid = BPF_CORE_READ(old, pid_of_old);
	missing_type = bpf_core_type_exists(struct nothing_of_the_kind);
	size = bpf_core_type_size(struct task_struct);
	enumerator = bpf_core_enum_value(enum pid_type, PIDTYPE_SID);
	no_enumerator = bpf_core_enum_value_exists(enum pid_type___odd, PIDTYPE_NONE___odd);
	bitfield = BPF_CORE_READ_BITFIELD_PROBED(other, no_cgroup_migration);
	pending = bpf_core_field_offset(lock->pending);
	ids = bpf_core_type_id_kernel(struct task_struct) != 0;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
