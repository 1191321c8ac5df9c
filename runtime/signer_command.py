"""`bpfseal signer …` with the compiler at hand, so that `policy check -e PROGRAM` can be answered.

The helper and its command line may not import the compiler; this module gives it to them as a function.
"""

from __future__ import annotations


def main(arguments: list[str]) -> int:
    """Exit status. Raises BpfsealError."""
    from bpfseal.signer.cli import main as signer

    return signer(arguments, compile_source)


def compile_source(text: str) -> bytes:
    """Canonical bundle bytes of a program. Raises DslError and other BpfsealErrors."""
    from bpfseal.runtime.build import Request, build

    return build(Request(text=text)).data
