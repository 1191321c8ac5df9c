"""bpfseal in IPython and Jupyter: `%load_ext bpfseal`, then `%bpfseal` and `%%bpfseal`.

Nothing of IPython, pandas or the compiler is imported before it is needed.
"""

from __future__ import annotations

from typing import Any


def load_ipython_extension(shell: Any) -> None:
    """Register the magics, their completion and help."""
    import atexit

    from bpfseal.runtime.notebook import completion, inspection
    from bpfseal.runtime.notebook.magics import BpfsealMagics

    if getattr(shell, "bpfseal_magics", None) is not None:
        return
    magics = BpfsealMagics(shell)
    shell.register_magics(magics)
    shell.bpfseal_magics = magics
    completion.install(shell)
    inspection.install(shell)
    # The traces' threads do not keep Python from leaving, so an orderly end has to be asked for.
    atexit.register(magics.close)


def unload_ipython_extension(shell: Any) -> None:
    """Stop what runs, and take magics and completions away again."""
    import atexit

    from bpfseal.runtime.notebook import completion, inspection

    magics = getattr(shell, "bpfseal_magics", None)
    if magics is None:
        return
    magics.close()
    atexit.unregister(magics.close)
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("bpfseal", None)
    completion.remove(shell)
    inspection.remove(shell)
    shell.bpfseal_magics = None
