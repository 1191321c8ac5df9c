"""Process 1 of the test kernel: started by init.sh as `python -I -S -B init.py`.

Run by path, before anything of the package can be imported: puts its own package on the module path
under the name `guest` and hands over.
"""

import importlib
import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    importlib.import_module("guest.agent").main()
