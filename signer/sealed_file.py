"""`SealedFile`: a bundle in a file, with signatures made ahead of time.

    8   "BPFSEAL" and a version
    32  sha256 of the rest: damage is told from forgery
        canonical msgpack of a SealedFile

Nothing executable is taken from such a file. A seal is the terms of a loader and the signature over it; whoever runs
the file emits the loader again from the bundle, and unless every byte is the one that was signed the kernel refuses it.
What is beside the bundle (kernel, attach points, layouts, files) is under the signature too: its digest, the
*statement*, is part of the loader's metadata.

Files come from strangers: sizes are limited before anything is decoded, the encoding has to be canonical.
"""

from __future__ import annotations

import hashlib

import msgspec

from bpfseal.errors import BpfsealError
from bpfseal.signer.bundle import Record
from bpfseal.signer.limits import MAX_BUNDLE_BYTES

MAGIC = b"BPFSEAL\x01"
VERSION = 2
MAX_FILE_BYTES = MAX_BUNDLE_BYTES + (1 << 20)
MAX_SEALS = 16
MAX_SIGNATURE = 16 << 10
MAX_CERTIFICATE = 16 << 10
MAX_CHAIN = 8
MAX_FILES = 256
_HEAD = len(MAGIC) + 32
_STATEMENT = b"bpfseal statement 1\0"


class SealedFileError(BpfsealError):
    """The bytes are not a sealed file, or not one that is to be believed."""


class KernelId(Record, frozen=True):
    """The kernel a bundle was made for.

    btf      sha256 of its type information (/sys/kernel/btf/vmlinux): what layouts and ids were taken from
    boot     its boot id where addresses of one boot are in the bundle, else empty
    """

    release: str
    machine: str
    btf: bytes
    boot: str = ""


class FileId(Record, frozen=True):
    """A file of the traced system whose offsets are in the bundle: its path and the sha256 of its contents."""

    path: str
    sha256: bytes


class Seal(Record, frozen=True):
    """One signature.

    abi           signing ABI of the kernels it is for: 1 or 2
    excl_offset, excl_size   for ABI 1: `signer.loader.ExclField` of the kernel it is for; 0 for ABI 2
    record        number of the audit record that was written before the signature was made
    loader        sha256 of loader and metadata, to tell a loader of another version of bpfseal from a damaged file
    signature     DER PKCS#7
    certificates  DER, the signer's first, then what leads to its root
    rule          rule of the policy that allowed it
    signed_at     seconds since 1970, as the signing machine's clock had it
    """

    abi: int
    record: int
    loader: bytes
    signature: bytes
    certificates: tuple[bytes, ...]
    excl_offset: int = 0
    excl_size: int = 0
    rule: str = ""
    signed_at: int = 0


class SealedFile(Record, frozen=True):
    """What is in a file. `bundle`: canonical bytes of a Bundle. `kind`: script or object. `bound`: the bundle is good
    for kernels with this type information only, because layouts or ids were taken from it."""

    version: int
    kind: str
    made_by: str
    bundle: bytes
    kernel: KernelId
    bound: bool
    files: tuple[FileId, ...] = ()
    seals: tuple[Seal, ...] = ()


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(SealedFile, strict=True)


def header(file: SealedFile) -> bytes:
    """Everything that is said about the bundle, without it and without seals: what a request to seal carries."""
    return _encoder.encode(msgspec.structs.replace(file, bundle=b"", seals=()))


def statement(bundle: bytes, head: bytes) -> bytes:
    """32 bytes that stand for a bundle and what is said about it."""
    digest = hashlib.sha256(_STATEMENT)
    digest.update(hashlib.sha256(bundle).digest())
    digest.update(hashlib.sha256(head).digest())
    return digest.digest()


def decode_header(head: bytes) -> SealedFile:
    """The SealedFile of `header`. Raises SealedFileError."""
    if len(head) > MAX_FILE_BYTES - MAX_BUNDLE_BYTES:
        raise SealedFileError(f"header of {len(head)} bytes is too long")
    file = _decode(head)
    if file.bundle or file.seals:
        raise SealedFileError("not a header: it has a bundle or seals")
    return file


def encode(file: SealedFile) -> bytes:
    """The bytes of a file: same contents, same bytes."""
    body = _encoder.encode(file)
    return MAGIC + hashlib.sha256(body).digest() + body


def decode(data: bytes) -> SealedFile:
    """The SealedFile that `data` is. Its bundle is not looked at. Raises SealedFileError."""
    if not data.startswith(MAGIC[:-1]):
        raise SealedFileError("not a sealed file")
    if data[: len(MAGIC)] != MAGIC:
        raise SealedFileError("a sealed file of another version of bpfseal")
    if len(data) > MAX_FILE_BYTES:
        raise SealedFileError(f"sealed file of more than {MAX_FILE_BYTES} bytes")
    body = data[_HEAD:]
    if hashlib.sha256(body).digest() != data[len(MAGIC) : _HEAD]:
        raise SealedFileError("damaged sealed file: its checksum is wrong")
    return _decode(body)


def _decode(body: bytes) -> SealedFile:
    try:
        file = _decoder.decode(body)
        canonical = _encoder.encode(file) == body
    except Exception as error:  # msgspec lets errors outside its own hierarchy through
        raise SealedFileError(f"bad sealed file: {error}") from None
    if not canonical:
        raise SealedFileError("bad sealed file: the encoding is not canonical")
    if file.version != VERSION:
        raise SealedFileError(f"sealed file version {file.version} is not {VERSION}")
    _check(file)
    return file


def _check(file: SealedFile) -> None:
    """Sizes and shapes beyond types. Raises SealedFileError."""
    kernel = file.kernel
    for good, what in (
        (file.kind in ("script", "object"), "kind"),
        (_plain(file.made_by, 64), "made_by"),
        (len(file.bundle) <= MAX_BUNDLE_BYTES, "bundle"),
        (_plain(kernel.release, 128) and _plain(kernel.machine, 32) and _plain(kernel.boot, 64), "kernel"),
        (len(kernel.btf) in (0, 32) and (kernel.btf or not file.bound), "kernel.btf"),
        (len(file.files) <= MAX_FILES, "files"),
        (all(len(f.sha256) == 32 and f.path[:1] == "/" and _plain(f.path, 4096) for f in file.files), "files"),
        (len(file.seals) <= MAX_SEALS, "seals"),
        (all(_good_seal(seal) for seal in file.seals), "seals"),
    ):
        if not good:
            raise SealedFileError(f"bad sealed file: {what} is not what it can be")


def _plain(text: str, limit: int) -> bool:
    return len(text) <= limit and text.isprintable()


def _good_seal(seal: Seal) -> bool:
    return (
        seal.abi in (1, 2)
        and 0 <= seal.record < 1 << 63
        and 0 <= seal.signed_at < 1 << 40
        and len(seal.loader) == 32
        and 0 < len(seal.signature) <= MAX_SIGNATURE
        and 0 < len(seal.certificates) <= MAX_CHAIN
        and all(0 < len(certificate) <= MAX_CERTIFICATE for certificate in seal.certificates)
        and _plain(seal.rule, 128)
        and ((seal.excl_size in (4, 8) and 0 < seal.excl_offset < 1 << 12) if seal.abi == 1 else not seal.excl_size)
        and (seal.abi == 1 or not seal.excl_offset)
    )
