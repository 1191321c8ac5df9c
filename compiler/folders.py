"""Where caches are. On the path of every trace, so it brings nothing along."""

from __future__ import annotations

import os


def cache_folder() -> str:
    """This user's caches: /var/cache/bpfseal for root, else below XDG_CACHE_HOME or ~/.cache."""
    if os.geteuid() == 0:
        return "/var/cache/bpfseal"
    base = os.environ.get("XDG_CACHE_HOME", "")
    return os.path.join(base if base.startswith("/") else os.path.expanduser("~/.cache"), "bpfseal")
