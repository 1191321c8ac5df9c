"""The loop of the byte fuzzers: mutate seeds, call the target, stop at what must not happen.

    python tests/fuzz/fuzz_NAME.py [--seconds 60] [--runs N] [--seed N] [--corpus FOLDER] [--atheris]

A target gets bytes and returns a word that says how far it got (counted in the report); whatever it raises is a
finding, and so is a run of more than a second of CPU. The input goes to `--out` under its sha256. Files of `--corpus`
are seeds too. With `--atheris` the loop is coverage-guided (pip install atheris).
"""

from __future__ import annotations

import argparse
import hashlib
import random
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

SLOW = 1.0  # seconds of CPU
Target = Callable[[bytes], str]


def mutate(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A few changes: bits, bytes, numbers at their borders, pieces cut, repeated, moved or taken from another seed."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 10))):
        at = rng.randrange(len(out) + 1)
        size = rng.choice((1, 1, 2, 4, 8, 8, 16, 64))
        match rng.randrange(8):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1 if out:
                out[at % len(out)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                value = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, rng.getrandbits(32)))
                width = rng.choice((1, 2, 4))
                out[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
            case 3:
                del out[at : at + size]
            case 4:
                out[at:at] = out[at : at + size] * rng.choice((1, 2, 20))
            case 5:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                out[at : at + rng.choice((0, size))] = other[start : start + size]
            case 6:
                at -= at % 8
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1) // 8 * 8
                out[at : at + 8] = other[start : start + 8]
            case 7:
                at -= at % 8
                out[at:at], out[at + 8 : at + 16] = out[at + 8 : at + 16], b""
    return bytes(out[: 1 << 16])


def impossible(error: Exception) -> str:
    """For an error of a kind or shape that must not be: makes it a finding."""
    raise AssertionError(f"{type(error).__name__}: {error}") from error


def run(name: str, target: Target, seeds: Sequence[bytes], change: Callable[..., bytes] = mutate) -> int:
    """The command line of a fuzzer; its exit status."""
    parser = argparse.ArgumentParser(description=name)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--atheris", action="store_true")
    options = parser.parse_args()
    pool = (
        [*seeds, *(p.read_bytes() for p in sorted(options.corpus.iterdir()) if p.is_file())]
        if options.corpus
        else [*seeds]
    )
    if options.atheris:
        return _guided(target, options.seconds)
    rng = random.Random(options.seed or time.time_ns())
    counts: Counter[str] = Counter()
    began, slowest, fresh = time.monotonic(), 0.0, 0
    while time.monotonic() - began < options.seconds and (not options.runs or counts.total() < options.runs):
        data = change(rng, rng.choice(pool), pool)
        before = time.process_time()
        try:
            result = target(data)
        except Exception:
            traceback.print_exc()
            return _found(name, data, options.out, "raised")
        took = time.process_time() - before
        slowest = max(slowest, took)
        if took > SLOW:
            return _found(name, data, options.out, f"took {took:.1f} s")
        if result not in counts and fresh < 4096:  # a new way to end is worth going on from
            pool.append(data)
            fresh += 1
        counts[result] += 1
    rate = counts.total() / max(time.monotonic() - began, 1e-9)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{name}: {counts.total()} runs, {rate:.0f}/s, slowest {slowest * 1000:.0f} ms, {memory} MB")
    print("  " + ", ".join(f"{word} {count}" for word, count in counts.most_common()))
    return 0


def _found(name: str, data: bytes, folder: Path, what: str) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}"
    path.write_bytes(data)
    print(f"{name}: {what}: {path}", file=sys.stderr)
    return 1


def _guided(target: Target, seconds: float) -> int:
    import atheris  # type: ignore[import-not-found,unused-ignore]

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], f"-max_total_time={int(seconds)}", "-timeout=5"], lambda data: target(data) and None)
    atheris.Fuzz()
    return 0
