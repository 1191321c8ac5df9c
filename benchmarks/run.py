"""`make bench`: all sections, or those that are named; writes benchmarks/RESULTS.md from what is in benchmarks/raw/.

    python benchmarks/run.py [SECTION …]

Sections are the files section_*.py beside this one. Raw figures are kept as JSON, so that a section can be run again
alone.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RAW = HERE / "raw"
SECTIONS = (
    "start", "compile", "events", "session", "readout", "attach", "per_event", "seal", "sealed_load", "exec", "imports",
    "notebook",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """What the figures were measured on, the load at the time included."""
    from measure import reference

    cpu = next(
        (x.split(":")[1].strip() for x in _read("/proc/cpuinfo").splitlines() if x.startswith("model name")), "?"
    )
    command = reference()
    version = ""
    if command:
        version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "kernel": os.uname().release,
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "reference": version,
        "load": os.getloadavg(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def main(names: list[str]) -> int:
    sys.path.insert(0, str(HERE))
    if unknown := [name for name in names if name not in SECTIONS]:
        sys.stderr.write(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}\n")
        return 2
    if os.geteuid() != 0:
        sys.stderr.write("benchmarks need root\n")
        return 1
    RAW.mkdir(exist_ok=True)
    # As in an installed package: bytecode is there before the first start, whatever PYTHONDONTWRITEBYTECODE says.
    folders = [str(path.resolve()) for path in (HERE.parent / "src" / "bpfseal").iterdir() if path.is_dir()]
    subprocess.run([sys.executable, "-m", "compileall", "-q", *folders], check=True)
    for name in names or SECTIONS:
        print(f"{name} …", flush=True)
        # In a process of its own: what a child is said to have taken at most is never less than its parent had.
        subprocess.run([sys.executable, __file__, "--alone", name], check=True)
    found = {n: json.loads((RAW / f"{n}.json").read_text()) for n in SECTIONS if (RAW / f"{n}.json").exists()}
    try:
        from plots import draw

        pictures = draw(found, HERE / "plots")
    except ImportError:
        print("no plots: pip install 'bpfseal[bench]'")
        pictures = {}
    (HERE / "RESULTS.md").write_text(report(found, pictures))
    print("benchmarks/RESULTS.md written")
    return 0


def alone(name: str) -> int:
    """One section, in this process, into its file of raw figures."""
    sys.path.insert(0, str(HERE))
    about = machine()
    section = importlib.import_module(f"section_{name}").section()
    about["load_after"] = os.getloadavg()
    (RAW / f"{name}.json").write_text(json.dumps({"machine": about, **section.plain()}, indent=1) + "\n")
    return 0


def report(found: dict[str, dict[str, Any]], pictures: dict[str, str]) -> str:
    """RESULTS.md from the raw figures of all sections that have been run."""
    about = next(iter(found.values()))["machine"]
    lines = [
        "# Figures",
        "",
        "Written by `make bench`; what each figure is the median of is in `benchmarks/raw/`. Ours and the reference",
        "run in turn on the same machine: the ratio (ours / reference) is what counts. Ratios below 1 mean that",
        "ours takes less; for throughput above 1 is better. The goal of a row, if it has one, is in the last column.",
        "",
        f"Machine: {about['cpus']} CPUs ({about['cpu']}), {about['memory_gib']} GiB, Linux {about['kernel']}.",
        f"Python {about['python']}. Reference: {about['reference'] or 'none found: our own figures only'}.",
        "",
    ]
    for name, section in found.items():
        load, after = section["machine"]["load"][0], section["machine"]["load_after"][0]
        lines += [
            f"## {section['title']}",
            "",
            section["text"],
            "",
            f"Load of the machine when it began and ended: {load:.1f}, {after:.1f}; {section['machine']['date']}.",
            "",
            "| | unit | ours | reference | ratio | goal |",
            "|---|---|---:|---:|---:|---|",
        ]
        for row in section["rows"]:
            other = row["reference"]
            ratio = f"{row['ours'] / other:.2f}" if other else ""
            note = f" ({row['note']})" if row["note"] else ""
            lines.append(
                f"| {row['what']}{note} | {row['unit']} | {_number(row['ours'])} | "
                f"{_number(other) if other is not None else ''} | {ratio} | {row['goal']} |"
            )
        lines.append("")
        if name in pictures:
            lines += [f"![{section['title']}](plots/{pictures[name]})", ""]
    return "\n".join(lines) + (HERE / "MISSED.md").read_text()


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(alone(sys.argv[2]) if sys.argv[1:2] == ["--alone"] else main(sys.argv[1:]))
