"""The loop of the byte fuzzers: mutate seeds, call the target, stop at what must not happen.

    python tests/fuzz/fuzz_NAME.py [--seconds 60] [--runs N] [--seed N] [--corpus FOLDER] [--atheris]

A target gets bytes and returns a word that says how far it got (counted in the report); whatever it raises is a
finding, and so is a run of more than a second of CPU. The input goes to `--out` under its sha256. Files of `--corpus`
are seeds too. With `--atheris` the loop is coverage-guided (pip install atheris).
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import types
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

SLOW = 1.0  # seconds of CPU
TELL = 30  # seconds between two lines of progress
BATCH = 16  # changes of one parent in a row: what it decodes to is made once
Target = Callable[[bytes], str]


_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_CHANGES = (1, 1, 1, 2, 3, 5, 10)
_SIZES = (1, 1, 2, 4, 8, 8, 16, 64)


def mutate(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A few changes: bits, bytes, numbers at their borders, pieces cut, repeated, moved or taken from another seed."""
    draw = rng.random  # several times as fast as randrange and choice, and the loop spends half of its time here
    out = bytearray(data)
    for _ in range(_CHANGES[int(draw() * 7)]):
        at = int(draw() * (len(out) + 1))
        way = int(draw() * 8)
        if way == 0 and out:
            out[at % len(out)] ^= 1 << int(draw() * 8)
        elif way == 1 and out:
            number = int(draw() * 16)
            out[at % len(out)] = _NUMBERS[number] & 0xFF if number < 8 else int(draw() * 256)
        elif way == 2:
            number = int(draw() * 9)
            value = _NUMBERS[number] if number < 8 else int(draw() * (1 << 32))
            width = 1 << int(draw() * 3)
            out[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        elif way == 3:
            del out[at : at + _SIZES[int(draw() * 8)]]
        elif way == 4:
            out[at:at] = out[at : at + _SIZES[int(draw() * 8)]] * (1, 2, 20)[int(draw() * 3)]
        elif way == 5:
            size = _SIZES[int(draw() * 8)]
            other = others[int(draw() * len(others))]
            start = int(draw() * (len(other) + 1))
            out[at : at + (size if draw() < 0.5 else 0)] = other[start : start + size]
        elif way == 6:
            at -= at % 8
            other = others[int(draw() * len(others))]
            start = int(draw() * (len(other) + 1)) // 8 * 8
            out[at : at + 8] = other[start : start + 8]
        elif way == 7:
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
        return _guided(target, options.seconds, pool, change, options.out)
    rng = random.Random(options.seed or time.time_ns())
    counts: Counter[str] = Counter()
    began = told = time.monotonic()
    slowest, fresh, total = 0.0, 0, 0
    gc.freeze()
    gc.set_threshold(50_000)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    while told - began < options.seconds and (not options.runs or total < options.runs):
        parent = pool[int(rng.random() * len(pool))]
        for _ in range(BATCH):
            data = change(rng, parent, pool)
            before = time.perf_counter()
            try:
                result = target(data)
                took = time.perf_counter() - before
                if took > slowest:  # by the clock on the wall: again, by that of this process
                    before = time.process_time()
                    target(data)
                    took = time.process_time() - before
            except Exception:
                traceback.print_exc()
                return _found(name, data, options.out, "raised")
            slowest = max(slowest, took)
            if took > SLOW:
                return _found(name, data, options.out, f"took {took:.1f} s")
            if result not in counts and fresh < 4096:  # a new way to end is worth going on from
                pool.append(data)
                fresh += 1
            counts[result] += 1
        total += BATCH
        now = time.monotonic()
        if now // TELL != told // TELL:
            print(f"{name}: {total} runs in {now - began:.0f} s", flush=True)
        told = now
    rate = total / max(time.monotonic() - began, 1e-9)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{name}: {total} runs, {rate:.0f}/s, slowest {slowest * 1000:.0f} ms, {memory} MB")
    print("  " + ", ".join(f"{word} {count}" for word, count in counts.most_common()))
    return 0


def _found(name: str, data: bytes, folder: Path, what: str) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}"
    path.write_bytes(data)
    print(f"{name}: {what}: {path}", file=sys.stderr)
    return 1


def _guided(target: Target, seconds: float, pool: Sequence[bytes], change: Callable[..., bytes], out: Path) -> int:
    """libFuzzer's loop with our changes: it keeps what reaches code that nothing reached before."""
    import atheris  # type: ignore[import-not-found,unused-ignore]

    for name, module in sys.modules.items():
        if name.startswith(("bpfseal.signer", "bpfseal.dsl")):
            for holder in (module, *(v for v in vars(module).values() if isinstance(v, type) and v.__module__ == name)):
                for value in list(vars(holder).values()):
                    if isinstance(value, types.FunctionType) and value.__module__ == name:
                        atheris.instrument_func(value)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        for number, data in enumerate(pool):
            Path(corpus, str(number)).write_bytes(data)
        atheris.Setup(
            [sys.argv[0], f"-max_total_time={int(seconds)}", "-timeout=5", f"-artifact_prefix={out}/", corpus],
            lambda data: target(data) and None,
            custom_mutator=lambda data, size, seed: change(random.Random(seed), bytes(data), pool)[:size],
        )
        atheris.Fuzz()
    return 0
