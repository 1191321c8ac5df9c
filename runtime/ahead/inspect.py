"""`bpfseal inspect`: everything that is in a file, as text or JSON. Trusts nothing in it and needs no privileges."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from bpfseal.errors import BpfsealError, UsageError
from bpfseal.runtime.ahead import place, store
from bpfseal.runtime.ahead.verify import judge, read_pem
from bpfseal.signer import insn as isa
from bpfseal.signer.bundle import Bundle, ProgramSpec
from bpfseal.signer.sealed_file import SealedFile


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(message, hint=f"{self.prog} --help")


def main(argv: list[str]) -> int:
    """`argv` without `bpfseal inspect`. Raises BpfsealError."""
    parser = _Parser(prog="bpfseal inspect", description="Show what is in a sealed file.")
    parser.add_argument("file", metavar="FILE.bpfseal")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--insns", action="store_true", help="text: the instructions too (JSON has them always)")
    parser.add_argument("--cert", metavar="FILE", help="PEM certificates to judge the seals by")
    options = parser.parse_args(argv)
    file, bundle = store.read(options.file)
    facts = describe(file, bundle, options.cert)
    if options.json:
        json.dump(facts, sys.stdout)
        sys.stdout.write("\n")
    else:
        sys.stdout.write(text(facts, insns=options.insns))
    return 0


def describe(file: SealedFile, bundle: Bundle, cert: str | None = None) -> dict[str, Any]:
    """Plain, JSON-ready facts. `analysis` is what the helper's analysis makes of the bundle here, or why it refuses;
    it needs the kernel that the file is for to name functions."""
    from bpfseal.signer import check

    kernel = file.kernel
    facts: dict[str, Any] = {
        "kind": file.kind,
        "made_by": file.made_by,
        "kernel": {"release": kernel.release, "machine": kernel.machine, "btf_sha256": kernel.btf.hex()},
        "bound_to_kernel": file.bound,
        "bound_to_boot": kernel.boot,
        "files": [{"path": f.path, "sha256": f.sha256.hex()} for f in file.files],
        "source": bundle.source,
    }
    try:
        place.demand(file)
        facts["runs_here"] = ""
    except BpfsealError as error:
        facts["runs_here"] = error.message
    try:
        facts["analysis"] = check.check(bundle).record()
    except BpfsealError as error:
        facts["analysis"] = {"refused": error.message}
    facts["maps"] = [
        {
            "name": m.name,
            "type": _map_type(m.type),
            "key_size": m.key_size,
            "value_size": m.value_size,
            "max_entries": m.max_entries,
            "flags": m.flags,
            "initial_bytes": len(m.initial),
            "frozen": m.frozen,
        }
        for m in bundle.maps
    ]
    facts["programs"] = [_program(p) for p in bundle.programs]
    facts["seals"] = judge(file, bundle, read_pem(cert) if cert else [])
    for line, seal in zip(facts["seals"], file.seals, strict=True):
        line["record"] = seal.record
        line["rule"] = seal.rule
        line["signed_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seal.signed_at))
        line["signature"] = seal.signature.hex()
        line["chain"] = [_certificate(der) for der in seal.certificates]
    return facts


def _map_type(number: int) -> str:
    from bpfseal.signer.helpers import MAP_TYPES

    return MAP_TYPES[number].name if number in MAP_TYPES else str(number)


def _program(program: ProgramSpec) -> dict[str, Any]:
    from bpfseal.signer.helpers import ATTACH_TYPES, PROGRAM_TYPES

    declared = program.declared
    return {
        "name": program.name,
        "type": PROGRAM_TYPES.get(program.type, str(program.type)),
        "attach_type": ATTACH_TYPES.get(program.expected_attach_type, str(program.expected_attach_type)),
        "license": program.license,
        "flags": program.flags,
        "target": program.attach_btf,
        "module": program.attach_module,
        "attach": [
            {"kind": a.kind, "probe": a.probe, "target": a.target, "symbols": list(a.symbols), "phase": a.phase}
            for a in program.attach
        ],
        "declared": {
            "insns": declared.insns,
            "subprograms": declared.subprograms,
            "helpers": list(declared.helpers),
            "kfuncs": list(declared.kfuncs),
        },
        "instructions": disassembly(program.insns),
    }


def disassembly(code: bytes) -> list[str]:
    """One line for each instruction, by slot; what cannot be decoded as bytes."""
    try:
        insns = isa.decode(code)
    except BpfsealError as error:
        return [f"undecodable: {error.message}"]
    lines: list[str] = []
    at = 0
    while at < len(insns):
        wide = insns[at].code == 0x18
        second = insns[at + 1] if wide else None
        lines.append(f"{at:5}: {isa.disassemble(insns[at], second)}")
        at += 2 if wide else 1
    return lines


def _certificate(der: bytes) -> dict[str, str]:
    from bpfseal.runtime.ahead.signature import name_of, read_certificate

    try:
        found = read_certificate(der)
        return {
            "subject": name_of(found),
            "issuer": found.issuer.rfc4514_string(),
            "serial": f"{found.serial_number:x}",
            "until": found.not_valid_after_utc.isoformat(),
        }
    except Exception as error:  # certificates of strangers, read as late as can be
        return {"trouble": str(error)}


def text(facts: dict[str, Any], *, insns: bool) -> str:
    """The facts for a terminal: nothing of a file's gets there unescaped."""
    kernel = facts["kernel"]
    lines = [
        f"{facts['kind']} by {facts['made_by']}",
        f"kernel   {kernel['release']} {kernel['machine']}, types {kernel['btf_sha256'][:16]}"
        + ("" if facts["bound_to_kernel"] else " (any kernel will do)"),
        f"here     {facts['runs_here'] or 'it can run'}",
        *(f"file     {f['path']} {f['sha256'][:16]}" for f in facts["files"]),
    ]
    for m in facts["maps"]:
        extra = ", constant" if m["frozen"] else f", {m['initial_bytes']} bytes given" if m["initial_bytes"] else ""
        sizes = f"{m['max_entries']} of {m['key_size']}+{m['value_size']} bytes{extra}"
        lines.append(f"map      {m['name']}: {m['type']}, {sizes}")
    analysis = facts["analysis"]
    if "refused" in analysis:
        lines.append(f"analysis refused: {analysis['refused']}")
    found = {p["name"]: p for p in analysis.get("programs", [])}
    for p in facts["programs"]:
        lines.append(f"program  {p['name']}: {p['type']} {p['attach_type']}".rstrip() + f", {p['license']}")
        lines += [f"         on {a['probe']}" for a in p["attach"][:16]]
        seen = found.get(p["name"], {})
        for what in ("helpers", "kfuncs", "classes", "variables"):
            if seen.get(what):
                lines.append(f"         {what}: {', '.join(seen[what])}")
        lines.append(f"         {p['declared']['insns'] or seen.get('insns', '?')} instructions")
        if insns:
            lines += [f"         {line}" for line in p["instructions"]]
    for seal in facts["seals"]:
        judged = seal["trouble"] or seal["distrust"] or ("good, trusted" if seal["trusted"] else "good")
        lines.append(f"seal     ABI v{seal['abi']}, {seal['signed_at']}, rule {seal['rule']}: {judged}")
        lines += [f"         {c.get('subject', c.get('trouble'))}" for c in seal["chain"]]
    if not facts["seals"]:
        lines.append("seal     none")
    if facts["source"]:
        lines += ["source", *(f"    {line}" for line in facts["source"].splitlines())]
    return "".join("".join(c if c.isprintable() or c == "\t" else "?" for c in line) + "\n" for line in lines)
