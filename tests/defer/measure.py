"""python -m tests.defer.measure FOLDER ROUNDS [OPTION…]: the measured reads, one line of JSON each. FOLDER has what
`kit.build` and `kit.page` made; options go to the trace."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from tests.defer import kit


def main(folder: str, rounds: str, *options: str) -> None:
    program, page = str(Path(folder) / "pageout"), str(Path(folder) / "page")
    for how in ("openat", "fault"):
        for mode in ("", "(signal)"):
            started = time.monotonic()
            found = kit.trace(kit.both_reads(mode, how), f"{program} {how} {rounds} {page}", *options)
            entry = {
                "kernel": os.uname().release,
                "how": how,
                "mode": mode or "resume",
                "status": found.status,
                "gone": found.gone,
                "plain": found.maps.get("@plain", {}),
                "later": found.maps.get("@later", {}),
                "account": found.account,
                "err": found.err[-500:],
                "seconds": round(time.monotonic() - started, 1),
            }
            print(json.dumps(entry), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
