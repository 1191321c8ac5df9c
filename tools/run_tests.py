"""`make test`: the tests that boot machines run beside all others, as each mostly waits for something else.

    python tools/run_tests.py [PYTEST OPTION …]

Status 0 if both are green. What the machines' run prints comes after the other's.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time


def main(options: list[str]) -> int:
    base = [sys.executable, "-m", "pytest", "-q", *options]
    begin = time.monotonic()
    with tempfile.TemporaryFile() as kept:
        machines = subprocess.Popen(
            [*base, "-p", "no:cacheprovider", "-m", "vm and not slow"], stdout=kept, stderr=subprocess.STDOUT
        )
        try:
            status = subprocess.run([*base, "-m", "not vm and not slow"], check=False).returncode
            print(f"\n{time.monotonic() - begin:.0f} s. Tests in test kernels:", flush=True)
            status = machines.wait() or status
        except KeyboardInterrupt:
            machines.wait()
            status = 130
        finally:
            if machines.poll() is None:
                machines.terminate()
                machines.wait()
        kept.seek(0)
        sys.stdout.write(kept.read().decode(errors="replace"))
    print(f"{time.monotonic() - begin:.0f} s in all")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
