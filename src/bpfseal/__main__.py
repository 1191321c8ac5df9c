"""`python -m bpfseal` is the command line."""

from bpfseal.runtime.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
