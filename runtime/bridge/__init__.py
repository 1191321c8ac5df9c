"""`bpfseal exec`: other tools' programs, sealed for them while they load them.

filter      seccomp filter that stops BPF_PROG_LOAD, and the start of a command under it
libc        calls that are made before the command runs
listener    the kernel's notifications about stopped calls
tool        memory, descriptors and name of the process that made a call
request     one BPF_PROG_LOAD, copied once from the tool
translate   that as a Bundle
supervisor  answers calls until the command ends
"""
