"""`KernelSymbols`: addresses of kernel functions, to compare guards with the functions that a bundle names."""

from __future__ import annotations

from bpfseal.errors import BpfsealError


class KernelSymbols:
    """Addresses by function name from `/proc/kallsyms`.

    The file is opened at once, because the kernel decides then whether this reader may see addresses
    (`kallsyms_show_value`), and read when the first name is asked for: a helper opens it before it gives up its
    privileges. Modules that are loaded later are not seen.
    """

    def __init__(self, path: str = "/proc/kallsyms") -> None:
        try:
            self._file = open(path, "rb")  # noqa: SIM115 - lives as long as this object
        except OSError as error:
            raise BpfsealError(f"{path}: {error.strerror}") from None
        self._text = b""

    def __call__(self, name: str) -> tuple[int, ...]:
        """All addresses of functions of that name, none for an unknown one or when addresses are hidden."""
        if not self._text:
            self._text = b"\n" + self._file.read()
            self._file.close()
        found: list[int] = []
        for end in (b"\n", b"\t"):  # a tab comes before the module's name
            wanted = b" " + name.encode() + end
            at = self._text.find(wanted)
            while at >= 0:
                address, kind = self._text[self._text.rfind(b"\n", 0, at) + 1 : at].split(b" ")
                if kind in b"tTwW" and int(address, 16):
                    found.append(int(address, 16))
                at = self._text.find(wanted, at + 1)
        return tuple(found)
