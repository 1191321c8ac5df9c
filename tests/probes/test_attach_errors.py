"""What a refusal of the kernel's is told as."""

from __future__ import annotations

import errno

from bpfseal.runtime.attach import explain
from bpfseal.signer.bundle import Attach


def test_inside_an_instruction() -> None:
    """The line is the reference's: scripts look for it. Which probe it was is in the hint."""
    spec = Attach("kprobe", probe="kprobe:vfs_read+1", target="vfs_read", params={"offset": 1})
    error = explain(spec, OSError(errno.EILSEQ, "Invalid or incomplete multibyte or wide character"))
    assert error.message == "Possible attachment attempt in the middle of an instruction, try a different offset."
    assert (error.code, error.probe) == (errno.EILSEQ, "kprobe:vfs_read+1")
    assert error.hint == "kprobe:vfs_read+1 was not attached"


def test_no_such_function() -> None:
    error = explain(Attach("kprobe", probe="kprobe:nope", target="nope"), OSError(errno.ENOENT, "No such file"))
    assert error.message == "Unable to attach probe: kprobe:nope: no such kernel function"
