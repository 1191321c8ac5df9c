"""What `demo.py` runs inside the test kernel: every claim is made by a command or a check that is shown."""

from __future__ import annotations

import argparse
import errno
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

BPFSEAL = [sys.executable, "-m", "bpfseal"]
SOCKET = "/run/bpfseal/signer.sock"
ONE_LINER = "tracepoint:syscalls:sys_enter_openat { @[comm] = count(); } interval:s:2 { exit(); }"


class Failed(Exception):
    """Something that was claimed was not seen."""


def show(words: list[str]) -> None:
    print("$ bpfseal " + " ".join(shlex.quote(w) for w in words), flush=True)


def bpfseal(*words: str, expect: int | None = 0, only: str = "") -> str:
    """Run and show a command (of its output the lines that match `only`); its output, both streams."""
    show(list(words))
    done = subprocess.run([*BPFSEAL, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    shown = [line for line in done.stdout.splitlines() if line.strip() and re.search(only, line)]
    print("".join(f"  {line}\n" for line in shown), end="", flush=True)
    if expect is not None and done.returncode != expect:
        raise Failed(f"status {done.returncode}, expected {expect}")
    return done.stdout


def start_helper() -> subprocess.Popen[bytes]:
    """The system's signing helper, as its service unit would start it."""
    show(["signer", "run"])
    helper = subprocess.Popen([*BPFSEAL, "signer", "run"])
    for _ in range(2400):  # two minutes: Python starts slowly in an emulated machine
        if os.path.exists(SOCKET):
            return helper
        if helper.poll() is not None:
            break
        time.sleep(0.05)
    raise Failed("the signing helper did not start")


def workload() -> subprocess.Popen[bytes]:
    """A process called `opener` that opens a file again and again while it is traced."""
    code = (
        "import os, time\n"
        "open('/proc/self/comm', 'w').write('opener')\n"
        "time.sleep(0.5)\n"
        "end = time.time() + 60\n"
        "while time.time() < end:\n"
        "    os.close(os.open('/dev/null', os.O_RDONLY)); time.sleep(0.002)\n"
    )
    return subprocess.Popen([sys.executable, "-c", code])


def check_unsigned_is_refused() -> None:
    output = bpfseal("--signing=off", "-e", "BEGIN { exit(); }", expect=1)
    if "EPERM" not in output:
        raise Failed("an unsigned load was not refused with EPERM")


def check_signed_counts() -> None:
    work = workload()
    try:
        output = bpfseal("--signing=require", "-e", ONE_LINER)
    finally:
        work.kill()
        work.wait()
    found = re.search(r"@\[opener\]: (\d+)", output)
    if not found or int(found[1]) < 10:
        raise Failed("the signed one-liner did not count the opener's events")


def check_flipped_bits_are_refused(abi: str) -> None:
    """One bit of the loader, one of the metadata: both must be refused; unflipped it must load."""
    from bpfseal.runtime.build import Request, build
    from bpfseal.runtime.load import LoadRefused, load
    from bpfseal.signer.client import connect

    data = build(Request(text="BEGIN { @x = 1; exit(); }")).data
    from bpfseal.signer.bundle import decode

    bundle = decode(data)
    with connect() as client:
        for part in ("nothing", "loader", "metadata"):
            sealed = client.seal(data)
            if part != "nothing":
                import msgspec

                damaged = bytearray(getattr(sealed, part))
                damaged[len(damaged) // 2] ^= 1
                sealed = msgspec.structs.replace(sealed, **{part: bytes(damaged)})
            try:
                load(bundle, sealed).close()
                verdict = "loads"
            except LoadRefused as error:
                verdict = f"refused: {error.message}"
            print(f"  one sealed bundle, {part} flipped: {verdict}", flush=True)
            if (part == "nothing") != (verdict == "loads"):
                raise Failed(f"a bundle with {part} flipped: {verdict}")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--expect-abi", required=True)
    abi = parser.parse_args().expect_abi
    Path("/run/bpfseal").mkdir(mode=0o755, exist_ok=True)
    helper = None
    try:
        helper = start_helper()
        doctor = bpfseal("doctor", expect=None, only="release|signing|enforce|lsms")
        if not re.search(rf"signing ABI.*\b{abi}\b", doctor):
            raise Failed(f"doctor does not report signing ABI {abi}")
        bpfseal("enforce", "on")
        check_unsigned_is_refused()
        check_signed_counts()
        check_flipped_bits_are_refused(abi)
        bpfseal("signer", "audit", "verify")
        bpfseal("enforce", "off")
        bpfseal("--signing=off", "-q", "-e", 'BEGIN { printf("unsigned loads again\\n"); exit(); }')
    except Failed as error:
        print(f"NOT OBSERVED: {error}", flush=True)
        return 1
    except OSError as error:
        print(f"NOT OBSERVED: {errno.errorcode.get(error.errno or 0, '')} {error}", flush=True)
        return 1
    finally:
        if helper is not None:
            helper.terminate()
            helper.wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
