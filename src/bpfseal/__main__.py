"""`python -m bpfseal` is the command line."""

from bpfseal.runtime.cli import console

if __name__ == "__main__":
    console()
