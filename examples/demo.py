"""The main job, on real kernels: signed tracing where the kernel requires signatures.

Boots a kernel with signing ABI v1 and one with v2 under QEMU and runs `demo_guest.py` in each. Ends with status 0 only
if everything that is claimed was observed.

    make demo
"""

from __future__ import annotations

import sys
from pathlib import Path

from bpfseal.errors import BpfsealError
from bpfseal.runtime import vm

KERNELS = {"6.18": "v1", "7.3": "v2"}
GUEST = Path(__file__).with_name("demo_guest.py")


def main() -> int:
    failed = []
    for kernel, abi in KERNELS.items():
        print(f"=== Linux {kernel}: signing ABI {abi} ===", flush=True)
        try:
            with vm.boot(kernel) as machine:
                result = machine.run(
                    [sys.executable, str(GUEST), "--expect-abi", abi],
                    timeout=600,
                    on_stdout=_show,
                    on_stderr=_show,
                )
        except BpfsealError as error:
            print(f"bpfseal: error: {error.message}" + (f"\nbpfseal: hint: {error.hint}" if error.hint else ""))
            return 1
        if result.status != 0:
            failed.append(kernel)
        print(flush=True)
    if failed:
        print(f"FAILED on Linux {', '.join(failed)}")
        return 1
    print("All of it was observed on both kernels.")
    return 0


def _show(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    raise SystemExit(main())
