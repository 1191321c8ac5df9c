"""`Bundle` and `SealedBundle`: what crosses the border to the signing helper and what comes back.

A Bundle is declarative and complete: everything that will exist in the kernel because of it is in here, with
maps named by their index. Its encoding is canonical: msgpack, fields in declaration order, integers in the
shortest form, `canonical(bundle) == bytes received` or the message is refused. That one rule rules out
duplicate keys, trailing bytes, over-long integers and unknown fields in one go.

These types carry no behaviour and no validation beyond types; `signer.check` decides whether a Bundle is sane.
Numbers are those of `include/uapi/linux/bpf.h`.
"""

from __future__ import annotations

import hashlib

import msgspec

from bpfseal.errors import BpfsealError
from bpfseal.signer.limits import MAX_BUNDLE_BYTES

BUNDLE_VERSION = 2


class BundleError(BpfsealError):
    """The bytes are not a canonical Bundle."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every wire type: immutable, strict, encoded as a map of all its fields in order."""


class MapSpec(Record, frozen=True):
    """One map: to create, or with an `id` one that exists already.

    `initial` is the value at key 0 of an ARRAY map (exactly `value_size` bytes) or empty; `frozen` maps are
    constants: created with BPF_F_RDONLY_PROG, filled, then frozen. `key_btf`/`value_btf` are type ids in the
    Bundle's own BTF, 0 for none.

    `id` is the kernel's id of an existing map, 0 for a new one. The id is what is sealed, so the loader can take no
    other map; what is said about the map beside it is the client's word, and its contents are nobody's. Existing
    maps come after all new ones, with neither contents nor types.
    """

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0
    initial: bytes = b""
    frozen: bool = False
    key_btf: int = 0
    value_btf: int = 0
    id: int = 0


class Attach(Record, frozen=True):
    """One attach point of a program: what `runtime.attach` is to do with the program fd.

    kind       perf_tracepoint | raw_tracepoint | trace | kprobe | kprobe_multi | uprobe | uprobe_multi | usdt |
               perf_event | test_run | signal | watchpoint | xdp | tc | iter | none
               ("trace" are the types whose target is part of the signed load: fentry, fexit, tp_btf, lsm.)
    probe      the canonical probe name that policy patterns match, e.g. "tracepoint:syscalls:sys_enter_openat"
    target     kind-specific: "syscalls:sys_enter_openat", a raw tracepoint name, a path, a function, an interface
    symbols    functions of a multi link, in order; cookie i belongs to symbol i
    offsets    offsets of a multi link where it is by address/offset (uprobe), else empty
    cookies    BPF cookies, one per symbol/offset, or one, or none
    params     small integers by name: perf type/config/sample_period/sample_freq, retprobe, session, pid, cpu, …
    phase      "begin" (run before the others attach), "attach", "end" (run after they detached)
    """

    kind: str
    probe: str
    target: str = ""
    symbols: tuple[str, ...] = ()
    offsets: tuple[int, ...] = ()
    cookies: tuple[int, ...] = ()
    params: dict[str, int] = {}
    phase: str = "attach"


class Attributes(Record, frozen=True):
    """What a program does, as declared by the compiler and as found by the analysis. All tuples are sorted.

    insns        instruction slots (8 bytes each)
    subprograms  subprograms beside the main one, callbacks included
    helpers      helper names without the `bpf_` prefix, e.g. "map_lookup_elem"
    kfuncs       kfunc names
    maps         (map index, sorted operations): "read" (look-up or direct value access), "write" (update, or a
                 store through a value pointer), "delete", "iterate", "output" (ring buffer, perf event array)
    """

    insns: int
    subprograms: int = 0
    helpers: tuple[str, ...] = ()
    kfuncs: tuple[str, ...] = ()
    maps: tuple[tuple[int, tuple[str, ...]], ...] = ()


# Of programs that others than our compiler made: policy then decides on what the analysis found.
UNDECLARED = Attributes(insns=0)


class ProgramSpec(Record, frozen=True):
    """One program to load.

    `insns`: 8 bytes per instruction, little endian; maps by BPF_PSEUDO_MAP_IDX / _MAP_IDX_VALUE with the index in
    `Bundle.maps`; kfuncs by vmlinux BTF id; never a file descriptor. `func_info`/`line_info` are records of 8 and
    16 bytes (struct bpf_func_info, struct bpf_line_info), empty for none. `attach_btf` is the *name* of the target
    function (or hook, tracepoint "btf_trace_NAME", iterator "bpf_iter_NAME"); the id beside it is checked by the
    helper against the kernel's BTF. `attach_module` is empty for vmlinux, and `prog-ID@FD` for
    a function of the BPF program with that id, which the loading process has as that descriptor.

    `linked`: the loader attaches the program as well, to its one attach point of kind "trace" and phase "attach", as
    soon as all programs are loaded. So nothing that runs before others are attached may matter to it.
    """

    name: str
    type: int
    insns: bytes
    declared: Attributes
    attach: tuple[Attach, ...]
    expected_attach_type: int = 0
    license: str = "GPL"
    flags: int = 0
    attach_btf: str = ""
    attach_btf_id: int = 0
    attach_module: str = ""
    func_info: bytes = b""
    line_info: bytes = b""
    linked: bool = False


class Bundle(Record, frozen=True):
    """Everything one session loads. `reader` is for the client only (compiler.layout.Reader); the helper bounds
    its size and digests it, nothing more."""

    version: int
    programs: tuple[ProgramSpec, ...]
    maps: tuple[MapSpec, ...]
    btf: bytes = b""
    source: str = ""
    reader: bytes = b""


class SealRequest(Record, frozen=True):
    """What a client may choose about the seal. Identity is never in here: the helper takes it from the kernel.

    abi       signing ABI of the kernel: 0 none, 1, 2; the helper trusts only its own probe and refuses a mismatch
    lifetime  wanted seconds until the loader's own deadline, 0 for the policy's default
    file      header of a sealed file (`signer.sealed_file`), for helpers that seal ahead of time; empty elsewhere
    """

    bundle: bytes
    lifetime: int = 0
    log_level: int = 0
    file: bytes = b""


class SealedBundle(Record, frozen=True):
    """A loader ready for the sequence in `runtime.load`.

    loader       instructions of the SYSCALL program
    metadata     the one value of its exclusive metadata map
    signature    DER PKCS#7, or empty where the kernel cannot verify
    abi          0 none, 1 v1, 2 v2
    keyring      serial of the verifying ring, 0 for none
    certificate  sha256 of the DER certificate
    record       sequence number of the audit record
    ctx_size     bytes of context that the run needs; layout: signer.loader.Context
    deadline_ns  CLOCK_BOOTTIME after which the loader refuses to run
    """

    loader: bytes
    metadata: bytes
    signature: bytes
    abi: int
    keyring: int
    certificate: bytes
    record: int
    ctx_size: int
    deadline_ns: int


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(Bundle, strict=True)


def encode(bundle: Bundle) -> bytes:
    """The canonical bytes of a Bundle: same Bundle, same bytes."""
    return _encoder.encode(bundle)


def decode(data: bytes) -> Bundle:
    """The Bundle that `data` is the canonical encoding of.

    Raises BundleError for everything else. msgspec raises errors outside its own hierarchy for some inputs
    (bad UTF-8), so every exception of the decoder means "bad bytes".
    """
    if len(data) > MAX_BUNDLE_BYTES:
        raise BundleError(f"bundle of {len(data)} bytes is over the limit of {MAX_BUNDLE_BYTES}")
    try:
        bundle = _decoder.decode(data)
    except Exception as error:
        raise BundleError(f"not a bundle: {error}") from None
    if bundle.version != BUNDLE_VERSION:
        raise BundleError(f"bundle version {bundle.version} is not {BUNDLE_VERSION}")
    if _encoder.encode(bundle) != data:
        raise BundleError("not a bundle: encoding is not canonical")
    return bundle


def digest(data: bytes) -> str:
    """sha256 of canonical bundle bytes, hex: the bundle's identity in audit records and caches."""
    return hashlib.sha256(data).hexdigest()
