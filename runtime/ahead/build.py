"""`bpfseal build`: a script, or an object that clang made, to a file that can be sealed and run elsewhere.

bpfseal build [-o FILE] SCRIPT [PARAMETER …] | -e PROGRAM | OBJECT.bpf.o [--btf FILE]
"""

from __future__ import annotations

import os
import sys

from bpfseal import __version__
from bpfseal.errors import BpfsealError, UsageError
from bpfseal.runtime.ahead import place, store
from bpfseal.signer.program_target import program_target
from bpfseal.signer.sealed_file import VERSION, KernelId, SealedFile

HELP = """\
usage: bpfseal build [-o FILE] [OPTIONS] SCRIPT [PARAMETER …]
       bpfseal build [-o FILE] [OPTIONS] -e PROGRAM
       bpfseal build [-o FILE] [--btf FILE] [--release NAME] OBJECT.bpf.o

Compile a script, or take over an object that clang made, into a file for `bpfseal seal` and `bpfseal run`.

  -o FILE         where to (default: the script's name with .bpfseal)
  --btf FILE      objects: type information of the kernel it is for (default: this one's)
  --release NAME  objects: what that kernel calls itself, for messages
  -I DIR, --include FILE, --unsafe, --no-warnings   as for a trace
"""


def main(argv: list[str]) -> int:
    """`argv` without `bpfseal build`. Raises BpfsealError."""
    if not argv or "-h" in argv or "--help" in argv:
        sys.stdout.write(HELP)
        return 0 if argv else 2
    btf, argv = _take(argv, "--btf")
    release, argv = _take(argv, "--release")
    from bpfseal.runtime import options as option_parser

    options = option_parser.parse(argv)
    if options.pid or options.command:
        raise UsageError("-p and -c are for `bpfseal run`: a process of this machine is not part of the file")
    if options.program is None and options.file is None:
        raise UsageError("nothing to build: give a FILE or -e 'PROGRAM'", hint="bpfseal build --help")
    if options.file is not None and is_object(options.file):
        file = from_object(options.file, btf, release)
    elif btf or release:
        raise UsageError("--btf and --release are for objects: scripts are compiled for the running kernel")
    else:
        from bpfseal.runtime.build import build
        from bpfseal.runtime.trace_command import _request

        built = build(_request(options))
        for warning in built.warnings if options.warnings else ():
            sys.stderr.write(warning + "\n")
        for program in built.bundle.programs:
            if program_target(program.attach_module) is not None:
                name = program.attach[0].probe
                raise BpfsealError(
                    f"{name} is a function of a BPF program, which lasts no longer than who loaded it",
                    hint="probe it from the script itself: bpfseal FILE",
                )
        boot = place.needs_this_boot(built.bundle.source)
        file = SealedFile(
            version=VERSION,
            kind="script",
            made_by=f"bpfseal {__version__}",
            bundle=built.data,
            kernel=place.this_kernel(boot=boot),
            bound=bool(place.btf_digest()),
            files=place.files_of(built.bundle),
        )
        if boot:
            sys.stderr.write("bpfseal: the script uses addresses or ids of this boot: the file is good until reboot\n")
    out = options.output or _name(options.file)
    store.write(out, file)
    sys.stdout.write(f"{out}: {len(file.bundle)} bytes, for kernel {file.kernel.release}\n")
    return 0


def is_object(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError as error:
        raise BpfsealError(f"failed to open file '{path}': {error.strerror}") from None


def from_object(path: str, btf: str, release: str) -> SealedFile:
    """Raises BpfsealError."""
    from bpfseal.runtime.ahead.object import bundle_of
    from bpfseal.signer.btf import Btf
    from bpfseal.signer.bundle import encode

    if btf:
        with open(btf, "rb") as file:
            types = Btf(file.read())
    else:
        types = Btf.vmlinux()
    bundle, bound = bundle_of(store.contents(path), types, os.path.basename(path))
    here = place.this_kernel()
    kernel = KernelId(
        release=release or (os.path.basename(btf) if btf else here.release),
        machine=here.machine,
        btf=place.btf_digest(btf or place.VMLINUX),
    )
    return SealedFile(
        version=VERSION,
        kind="object",
        made_by=f"bpfseal {__version__}",
        bundle=encode(bundle),
        kernel=kernel,
        bound=bound,
    )


def _name(path: str | None) -> str:
    if path is None or path == "-":
        raise UsageError("-o FILE is needed", hint="bpfseal build --help")
    base = os.path.basename(path)
    for ending in (".bpf.o", ".o", ".bt", ".bpftrace"):
        if base.endswith(ending) and base != ending:
            base = base.removesuffix(ending)
            break
    return base + store.SUFFIX


def _take(argv: list[str], name: str) -> tuple[str, list[str]]:
    """The value of a long option and the rest."""
    for at, word in enumerate(argv):
        if word == "--":
            break
        if word == name:
            if at + 1 == len(argv):
                raise UsageError(f"{name} needs a value")
            return argv[at + 1], argv[:at] + argv[at + 2 :]
        if word.startswith(name + "="):
            return word.partition("=")[2], argv[:at] + argv[at + 1 :]
    return "", argv
