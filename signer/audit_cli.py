"""`bpfseal signer audit verify|show|export`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

from bpfseal.signer import audit_read


def main(options: argparse.Namespace, path: str) -> int:
    """Exit status: 0, or 1 when verification found something."""
    if options.action == "show":
        return _show(path, options.n)
    report = audit_read.verify(
        path,
        anchors=_anchors(options.anchor),
        root_key=audit_read.read_root_key(options.root) if options.root else None,
    )
    if options.action == "export" and report.good:
        for _, line, _ in audit_read.lines(path):  # as they are: an export can be verified again
            if audit_read.parse(line) is not None:
                print(line.decode("ascii"))
    out = sys.stderr if options.action == "export" else sys.stdout
    for finding in report.findings:
        print(finding, file=out)
    for note in report.notes:
        print(f"note: {note}", file=out)
    verdict = "good" if report.good else f"{len(report.findings)} findings"
    anchored = f", anchored up to {report.anchored_to}" if report.anchored_to else ""
    print(f"{path}: {verdict}: {report.records} records, head {report.head}:{report.head_hash}{anchored}", file=out)
    return 0 if report.good else 1


def _anchors(given: list[str]) -> dict[int, str]:
    anchors: dict[int, str] = {}
    for item in given:
        if os.path.exists(item):
            anchors |= audit_read.read_anchor_file(item)
        else:
            seq, digest = audit_read.parse_anchor(item)
            anchors[seq] = digest
    return anchors


def _show(path: str, last: int) -> int:
    records = audit_read.records(path)
    if last > 0:
        from collections import deque

        records = iter(deque(records, maxlen=last))
    for record in records:
        print(line_of(record))
    return 0


def line_of(record: dict[str, Any]) -> str:
    """One record as one line that is safe on a terminal, whatever clients put into it."""
    wall = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["wall"]))
    parts = [f"{record['seq']:>6}", wall, str(record["event"])]
    if "uid" in record:
        parts.append(f"uid={record['uid']} pid={record.get('pid', '?')}")
    for name in ("rule", "bundle", "key", "abi"):
        if name in record:
            parts.append(f"{name}={str(record[name])[:40]}")
    for reason in record.get("reasons", []) if isinstance(record.get("reasons"), list) else []:
        parts.append(str(reason))
    if isinstance(record.get("source"), str):
        parts.append("| " + " ".join(record["source"].split())[:200])
    return printable("  ".join(parts))


def printable(text: str) -> str:
    """`text` with everything that is not plain and visible escaped: control characters, and the invisible or
    direction-changing ones of Unicode."""
    return "".join(c if c == " " or (c.isprintable() and not c.isspace()) else repr(c)[1:-1] for c in text)
