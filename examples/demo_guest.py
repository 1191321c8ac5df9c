"""What `demo.py` runs inside the test kernel: every claim is made by a command or a check that is shown."""

from __future__ import annotations

import argparse
import errno
import re
import shlex
import subprocess
import sys

BPFSEAL = [sys.executable, "-m", "bpfseal"]
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


def workload() -> subprocess.Popen[str]:
    """A running process called `opener` that opens a file every two milliseconds until it is killed."""
    code = (
        "import os, time\n"
        "open('/proc/self/comm', 'w').write('opener')\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    os.close(os.open('/dev/null', os.O_RDONLY)); time.sleep(0.002)\n"
    )
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


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


def check_flipped_bits_are_refused() -> None:
    """One bit of the loader, one of the metadata: both must be refused; unflipped it must load."""
    import msgspec

    from bpfseal.runtime.build import Request, build
    from bpfseal.runtime.load import LoadRefused, load
    from bpfseal.signer.bundle import decode
    from bpfseal.signer.client import connect

    data = build(Request(text="BEGIN { @x = 1; }")).data
    bundle = decode(data)
    with connect() as client:
        for part in ("nothing", "loader", "metadata"):
            sealed = client.seal(data)
            if part != "nothing":
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
    try:
        bpfseal("enforce", "on", "--start-helper")
        doctor = bpfseal("doctor", expect=None, only="release|helper|signing ABI|enforcement")
        if not re.search(rf"signing ABI.*\b{abi}\b", doctor):
            raise Failed(f"doctor does not report signing ABI {abi}")
        check_unsigned_is_refused()
        check_signed_counts()
        check_flipped_bits_are_refused()
        bpfseal("signer", "audit", "verify")
        bpfseal("enforce", "off")
        bpfseal("--signing=off", "-q", "-e", 'BEGIN { printf("an unsigned program loads again\\n"); }')
    except Failed as error:
        print(f"NOT OBSERVED: {error}", flush=True)
        return 1
    except OSError as error:
        print(f"NOT OBSERVED: {errno.errorcode.get(error.errno or 0, '')} {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
