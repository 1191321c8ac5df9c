"""One row for each kind of probe: how it is listed, a program that counts events which a small process makes."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

# What is traced: `events WHAT COUNT`. It is linked to fixed addresses, so that a watchpoint can be written down.
SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#define PROBE(provider, name, arguments, ...)                                                \
    asm volatile("990: nop\n"                                                                \
                 ".pushsection .note.stapsdt,\"\",\"note\"\n"                                \
                 ".balign 4\n .4byte 992f-991f, 994f-993f, 3\n"                              \
                 "991: .asciz \"stapsdt\"\n 992: .balign 4\n"                                \
                 "993: .8byte 990b, 0, 0\n"                                                  \
                 ".asciz \"" provider "\"\n .asciz \"" name "\"\n .asciz \"" arguments "\"\n" \
                 "994: .balign 4\n .popsection\n" ::__VA_ARGS__)

volatile int watched = 1; // not among what the kernel clears when it starts the program
__attribute__((noinline)) int traced(int n) { asm volatile("" ::: "memory"); return n + 1; }
__attribute__((noinline)) int other(int n) { asm volatile("" ::: "memory"); return n + 2; }

int main(int argc, char **argv) {
    const char *what = argv[1];
    int count = atoi(argv[2]);
    char *pages = 0;
    char buffer[77];
    int zero = open("/dev/zero", O_RDONLY);
    signal(SIGUSR2, SIG_IGN);
    if (!strcmp(what, "fault")) {
        pages = mmap((void *)0x600000000000, 4096L * count, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        madvise(pages, 4096L * count, MADV_NOHUGEPAGE);
    }
    for (int i = 0; i < count; i++) {
        if (!strcmp(what, "getppid")) syscall(SYS_getppid);
        if (!strcmp(what, "kill")) kill(getpid(), SIGUSR2);
        if (!strcmp(what, "read")) read(zero, buffer, sizeof buffer);
        if (!strcmp(what, "open")) close(open("/dev/null", O_RDONLY));
        if (!strcmp(what, "call")) { traced(i); other(i); }
        if (!strcmp(what, "usdt")) PROBE("app", "step", "-4@%[n]", [n] "r"(i));
        if (!strcmp(what, "write")) watched = i;
        if (!strcmp(what, "fault")) pages[4096L * i] = 1;
    }
    return 0;
}
"""


@dataclass(frozen=True)
class Row:
    """
    probe     attach point; {exe} and {watched} are put in
    body      filter and block, counting in @
    does      arguments of the traced program, none: nothing is traced
    count     what @ has to be
    listed    pattern and line of a listing
    argument  a line of the verbose listing, "" where there is none
    needs     "kprobe", "trampoline", "lsm" or "watchpoint": what the machine must have
    """

    name: str
    probe: str
    body: str
    does: str
    count: int
    listed: tuple[str, str]
    argument: str = ""
    needs: str = ""


N = 137
MINE = "/pid == cpid/ { @ = count(); }"


def traceable(*names: str) -> str:
    """The first of some names of one function that this kernel's list of functions has; else the first."""
    with suppress(OSError), open("/sys/kernel/tracing/available_filter_functions") as file:
        listed = {line.split()[0] for line in file}
        return next((name for name in names if name in listed), names[0])
    return names[0]


GETPPID = traceable("__x64_sys_getppid", "__do_sys_getppid")
FAMILY = GETPPID.removesuffix("ppid")

ROWS = (
    Row("begin", "begin", "{ @ = count(); }", "", 1, ("begin:*", "")),
    Row("end", "begin { exit(); } end", "{ @ = count(); }", "", 1, ("end:*", "")),
    Row("interval", "interval:ms:20", "/@ < 5/ { @ = count(); if (@ == 5) { exit(); } }", "", 5,
        ("interval:*", "interval:ms:")),
    Row(
        "profile", "profile:hz:50", "/cpu == 0 && @ < 5/ { @ = count(); if (@ == 5) { exit(); } }", "", 5,
        ("profile:*", "profile:hz:"),
    ),
    Row(
        "software", "software:page-faults:1",
        "/(uint64)ctx->addr >= 0x600000000000 && (uint64)ctx->addr < 0x600010000000/ { @ = count(); }", f"fault {N}", N,
        ("software:*", "software:page-faults:"),
    ),
    Row(
        "tracepoint-syscall", "tracepoint:syscalls:sys_enter_getppid", MINE, f"getppid {N}", N,
        ("tracepoint:syscalls:sys_enter_getppid", "tracepoint:syscalls:sys_enter_getppid"),
    ),
    Row(
        "tracepoint-exit", "tracepoint:syscalls:sys_exit_read", "/pid == cpid && args.ret == 77/ { @ = count(); }",
        f"read {N}", N, ("tracepoint:syscalls:sys_exit_read", "tracepoint:syscalls:sys_exit_read"), "long ret",
    ),
    Row(
        "tracepoint-wildcard", "tracepoint:syscalls:sys_enter_getp*", MINE, f"getppid {N}", N,
        ("tracepoint:syscalls:sys_enter_getp*", "tracepoint:syscalls:sys_enter_getppid"),
    ),
    Row(
        "tracepoint", "tracepoint:signal:signal_generate", "/pid == cpid && args.sig == 12/ { @ = count(); }",
        f"kill {N}", N, ("tracepoint:signal:*", "tracepoint:signal:signal_generate"), "int sig",
    ),
    Row(
        "tracepoint-plain", "tracepoint:signal:signal_deliver,tracepoint:signal:signal_generate", MINE, f"kill {N}",
        N + 1,  # its end is a signal to its parent
        ("tracepoint:signal:*", "tracepoint:signal:signal_deliver"),
    ),
    Row(
        "rawtracepoint", "rawtracepoint:signal_generate", "/pid == cpid && args.sig == 12/ { @ = count(); }",
        f"kill {N}", N, ("rawtracepoint:signal_*", "rawtracepoint:vmlinux:signal_generate"), "int sig",
    ),
    Row("uprobe", "uprobe:{exe}:traced", "/arg0 < 100/ { @ = count(); }", f"call {N}", 100,
        ("uprobe:{exe}:tra*", "uprobe:{exe}:traced")),
    Row("uretprobe", "uretprobe:{exe}:traced", "/retval < 100/ { @ = count(); }", f"call {N}", 99,
        ("uretprobe:{exe}:tra*", "uretprobe:{exe}:traced")),
    Row("uprobe-address", "uprobe:{exe}:{traced}", "{ @ = count(); }", f"call {N}", N,
        ("uprobe:{exe}:tra*", "uprobe:{exe}:traced")),
    Row("uprobe-wildcard", "uprobe:{exe}:traced,uprobe:{exe}:oth*", "{ @ = count(); }", f"call {N}", 2 * N,
        ("uprobe:{exe}:oth*", "uprobe:{exe}:other")),
    Row("uprobe-session", "uprobe:{exe}:traced,uprobe:{exe}:oth* /arg0 < 100/ { @ = count(); } "
        "uretprobe:{exe}:traced,uretprobe:{exe}:oth*", "/retval < 100/ { @ = count(); }", f"call {N}", 200 + 99 + 98,
        ("uretprobe:{exe}:oth*", "uretprobe:{exe}:other")),
    Row("usdt", "usdt:{exe}:app:step", "/arg0 >= 100/ { @ = count(); }", f"usdt {N}", N - 100,
        ("usdt:{exe}:*", "usdt:{exe}:app:step")),
    Row("watchpoint", "watchpoint:{watched}:4:w", "{ @ = count(); }", f"write {N}", N,
        ("watchpoint:*", ""), "", "watchpoint"),
    Row("iter", "iter:task", "/(uint64)ctx->task == (uint64)curtask/ { @ = count(); }", "", 1,
        ("iter:task", "iter:task"), "struct task_struct * task"),
    Row("kprobe", f"kprobe:{GETPPID}", MINE, f"getppid {N}", N,
        (f"kprobe:{GETPPID}", f"kprobe:{GETPPID}"), "", "kprobe"),
    Row("kretprobe", f"kretprobe:{GETPPID}", "/pid == cpid && retval > 0/ { @ = count(); }", f"getppid {N}", N,
        (f"kretprobe:{GETPPID}", f"kretprobe:{GETPPID}"), "", "kprobe"),
    Row("kprobe-arguments", "kprobe:vfs_read", "/pid == cpid && arg2 == 77/ { @ = count(); }", f"read {N}", N,
        ("kprobe:vfs_r*", "kprobe:vfs_read"), "size_t count", "kprobe"),
    Row("kprobe-offset", "kprobe:vfs_read+0", "/pid == cpid && arg2 == 77/ { @ = count(); }", f"read {N}", N,
        ("kprobe:vfs_r*", "kprobe:vfs_read"), "", "kprobe"),
    Row("kprobe-multi", f"kprobe:{FAMILY}p*id", MINE, f"getppid {N}", N,
        (f"kprobe:{FAMILY}p*", f"kprobe:{GETPPID}"), "", "kprobe"),
    Row("kretprobe-multi", f"kretprobe:{FAMILY}p*id", MINE, f"getppid {N}", N,
        (f"kretprobe:{FAMILY}p*", f"kretprobe:{GETPPID}"), "", "kprobe"),
    Row("kprobe-session", f"kprobe:{FAMILY}p*id", f"{MINE} kretprobe:{FAMILY}p*id /pid == cpid && retval > 0/ "
        "{ @ = count(); }", f"getppid {N}", 2 * N, (f"kretprobe:{FAMILY}p*", f"kretprobe:{GETPPID}"), "", "kprobe"),
    Row("fentry", "fentry:vfs_read", "/pid == cpid && args.count == 77/ { @ = count(); }", f"read {N}", N,
        ("fentry:vfs_read", "fentry:vmlinux:vfs_read"), "size_t count", "trampoline"),
    Row("fexit", "fexit:vfs_read", "/pid == cpid && retval == 77/ { @ = count(); }", f"read {N}", N,
        ("fexit:vfs_read", "fexit:vmlinux:vfs_read"), "ssize_t retval", "trampoline"),
    Row("lsm", "lsm:task_kill", "/pid == cpid && args.sig == 12/ { @ = count(); }", f"kill {N}", N,
        ("lsm:task_kill", "lsm:task_kill"), "int sig", "lsm"),
    Row("lsm-file", "lsm:file_open", '/pid == cpid && str(args.file->f_path.dentry->d_name.name) == "null"/ '
        "{ @ = count(); }", f"open {N}", N, ("lsm:file_o*", "lsm:file_open"), "struct file * file", "lsm"),
)  # fmt: skip
