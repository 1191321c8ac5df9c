"""Reading and writing sealed files."""

from __future__ import annotations

import os
import tempfile

from bpfseal.errors import BpfsealError
from bpfseal.signer.bundle import Bundle
from bpfseal.signer.bundle import decode as decode_bundle
from bpfseal.signer.sealed_file import MAX_FILE_BYTES, SealedFile, decode, encode

SUFFIX = ".bpfseal"


def contents(path: str) -> bytes:
    """Raises BpfsealError; reads no more than such a file may have."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BpfsealError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise BpfsealError(f"{path} is larger than {MAX_FILE_BYTES} bytes, which no sealed file is")
    return data


def read(path: str) -> tuple[SealedFile, Bundle]:
    """Raises BpfsealError that names the file."""
    try:
        file = decode(contents(path))
        return file, decode_bundle(file.bundle)
    except BpfsealError as error:
        hint = "bpfseal build makes one" if error.message == "not a sealed file" else error.hint
        message = error.message if error.message.startswith("cannot read") else f"{path}: {error.message}"
        raise BpfsealError(message, hint=hint) from None


def write(path: str, file: SealedFile) -> None:
    """All of it or nothing. Raises BpfsealError."""
    folder, name = os.path.split(os.path.abspath(path))
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
        with os.fdopen(descriptor, "wb") as out:
            out.write(encode(file))
            os.fchmod(out.fileno(), 0o666 & ~_umask())
        os.rename(temporary, path)
    except OSError as error:
        if temporary:
            try:
                os.unlink(temporary)
            except OSError:
                pass
        raise BpfsealError(f"cannot write {path}: {error.strerror}") from None


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
