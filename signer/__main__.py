"""`python -I -m bpfseal.signer …` is `bpfseal signer …`."""

import sys

from bpfseal.errors import BpfsealError
from bpfseal.signer.cli import main

if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except BpfsealError as error:
        sys.stderr.write(
            f"bpfseal: error: {error.message}\n" + (f"bpfseal: hint: {error.hint}\n" if error.hint else "")
        )
        raise SystemExit(error.status) from None
