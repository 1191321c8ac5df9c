"""Mutates valid scripts: the front end must give a tree or a diagnostic, at once, and never a traceback.

    python tests/fuzz/fuzz_grammar.py [--runs 50000 | --seconds 600] [--seed 1] [--corpus FOLDER]

What fails is written to the folder `--out` and reported at the end; the status is 1 then. `--corpus` adds files (*.bt)
to start from.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bpfseal.dsl import points
from bpfseal.dsl.front import front
from bpfseal.dsl.source import DslError
from bpfseal.errors import BpfsealError
from tests.fuzz.seeds import SEEDS, TOKENS
from tests.fuzz.world import EmptyEnvironment

SLOW = 2.0  # seconds of CPU


def mutated(random: random.Random, texts: list[str]) -> str:
    """One of `texts` after a few random changes of characters, tokens and pieces."""
    text = random.choice(texts)
    for _ in range(random.choice((1, 1, 1, 2, 3, 5, 8))):
        at = random.randrange(len(text) + 1)
        to = min(len(text), at + random.choice((1, 1, 2, 5, 20)))
        match random.randrange(8):
            case 0:
                text = text[:at] + chr(random.choice((random.randrange(128), random.randrange(0x300)))) + text[at + 1 :]
            case 1:
                text = text[:at] + text[to:]
            case 2:
                text = text[:at] + random.choice(TOKENS) + text[at:]
            case 3:
                text = text[:at] + random.choice(TOKENS) + text[to:]
            case 4:
                other = random.choice(texts)
                start = random.randrange(len(other) + 1)
                text = text[:at] + other[start : start + random.choice((3, 10, 60))] + text[to:]
            case 5:
                text = text[:at] + text[at:to] * random.choice((2, 3, 300)) + text[to:]
            case 6:
                text = (
                    text[:at]
                    + random.choice(("(", "{", "[", "-", "!", "(1,", "if(1){", "a?", "1+", "@x["))
                    * (random.choice((5, 150, 250, 3000)))
                    + text[at:]
                )
            case 7:
                words = text.split(" ")
                i, k = random.randrange(len(words)), random.randrange(len(words))
                words[i], words[k] = words[k], words[i]
                text = " ".join(words)
    return text[:65536]


def front_end(text: str) -> str:
    """How far `text` gets: "refused", or "expanded". Raises what must not be raised."""
    try:
        script, _ = front(text, "fuzz", EmptyEnvironment(), params=("7", "text"), folder=Path("/nonexistent"))
        for probe in script.probes:
            for point in probe.points:
                points.specs(point.text, unsafe=True)
    except DslError as error:
        error.render()
        return "refused"
    except BpfsealError:
        return "refused"
    return "expanded"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, help="instead of a number of runs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"))
    options = parser.parse_args()
    source = random.Random(options.seed)
    texts = list(SEEDS)
    if options.corpus:
        texts += [p.read_text(errors="surrogateescape") for p in sorted(options.corpus.rglob("*.bt"))]
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    ends = time.monotonic() + options.seconds if options.seconds else None
    run = 0
    while run < options.runs if ends is None else time.monotonic() < ends:
        run += 1
        text = mutated(source, texts)
        started = time.process_time()
        try:
            outcome = front_end(text)
        except Exception:
            outcome = "crashed"
            report(options.out, run, text, traceback.format_exc())
        spent = time.process_time() - started
        if spent > SLOW:
            outcome = "slow"
            report(options.out, run, text, f"{spent:.1f} s")
        slowest = max(slowest, spent)
        outcomes[outcome] += 1
    print(f"{run} runs: {dict(outcomes)}, slowest {slowest:.2f} s")
    return 1 if outcomes["crashed"] or outcomes["slow"] else 0


def report(folder: Path, run: int, text: str, why: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{run}.bt").write_text(text, errors="surrogateescape")
    print(f"--- run {run}: {why.strip().splitlines()[-1]} ({folder / f'{run}.bt'})", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
