#!/bin/sh
# Inside a test kernel that enforces signatures; $1 is the tool made of tool.c. Marked sections, judged outside.
PATH=$PATH:/usr/sbin:/sbin
SCRIPT='kprobe:vfs_read { @reads = count(); } tracepoint:syscalls:sys_enter_openat { @opens = count(); }
BEGIN { printf("began\n"); } interval:s:1 { exit(); }'

echo "=== bpftrace alone"
bpftrace -e "$SCRIPT" 2>&1
echo "=== bpftrace"
bpfseal exec -v -- bpftrace -e "$SCRIPT" 2>&1
echo "=== tool alone"
"$1" count alone 2>&1
echo "=== tool"
bpfseal exec -- "$1" count sealed 2>&1
echo "=== audit"
bpfseal signer audit show 2>&1
echo "=== decisions"
bpfseal enforce log 2>&1
echo "=== end"
