"""The text of `bpfseal --help`."""

from __future__ import annotations

from collections.abc import Mapping

_TEXT = """\
bpfseal - bpftrace-style tracing, generated and signed on the fly

USAGE:
    bpfseal [OPTIONS] -e 'PROGRAM' [PARAMS…]     trace with a one-liner
    bpfseal [OPTIONS] FILE [PARAMS…]             trace with a script ("-" reads standard input)
    bpfseal -l [PATTERN | FILE]                  list probes (-lv: with their arguments)
    bpfseal COMMAND …                            one of the commands below; COMMAND --help tells more

EXAMPLES
    bpfseal -e 'tracepoint:syscalls:sys_enter_openat { printf("%s %s\\n", comm, str(args.filename)); }'
        who opens which file
    bpfseal -e 'tracepoint:syscalls:sys_enter_openat { @[comm] = count(); } interval:s:2 { exit(); }'
        count opens by process name, for two seconds
    bpfseal -e 'profile:hz:99 { @[kstack] = count(); }'
        what the kernel is busy with
    bpfseal -l 'tracepoint:sched:*'
        find probes
    bpfseal vm --kernel 7.3 --enforce -- bpfseal -e '…'
        the same inside a kernel that requires signatures

TRACING
    -e PROGRAM           the program
    -p PID               trace this process only; the trace ends with it
    --dwarf-pid PID      dw_ustack() is about this process, too; may be given again
    -c COMMAND           run COMMAND, held until all probes are attached; the trace ends with it
    --unsafe             allow system(), signal(), override() and writes to user memory
    --dry-run            attach everything, then leave at once

OUTPUT
    -o FILE              write to FILE          -f text|json     format
    -q                   no messages of our own -B line|full|none  buffering
    -v                   say more; on a verifier rejection show its log
    --live               maps as a full-screen view with rates; the maps are printed at the end as always
    --flamegraph FILE    maps with stacks as a flame graph, .svg or .html
    --heatmap FILE.svg   histograms over time
    -k                   report failed reads of memory
    --pcap FILE          where capture() writes packets to, for tcpdump -r
    --no-warnings        no warnings            --raw            control bytes to a terminal as they are
    --list-source        write the program instead of tracing, on a terminal in colours
    -d STAGE             show ast, types, codegen, codegen-opt or dis; --emit-llvm FILE writes the IR

SIGNING
    --signing auto       (default) sign always; where the kernel cannot verify, say so once and load
    --signing require    refuse to load unless the kernel verified the signature
    --signing off        load without a signature and without a helper
    --policy FILE        policy of the private helper (default: all that --unsafe does not unlock)
    --lifetime SECONDS   how long the sealed loader may be used

COMMANDS
"""

_TAIL = """
ENVIRONMENT
    BPFSEAL_SOCKET       socket of the signing helper (default /run/bpfseal/signer.sock, else a private helper)
    BPFTRACE_*           the configuration variables of bpftrace, as there
"""


def usage() -> str:
    """The forms of a command line."""
    return _TEXT[_TEXT.index("USAGE:") : _TEXT.index("\nEXAMPLES")]


def text(commands: Mapping[str, tuple[str, str]]) -> str:
    """The whole help; `commands` as in `cli.COMMANDS`."""
    rows = "".join(f"    {name:<20} {line}\n" for name, (_, line) in sorted(commands.items()))
    return _TEXT + rows + _TAIL
