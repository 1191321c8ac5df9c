"""Test kernels: Debian's cloud kernels, downloaded once, unpacked into the user's cache directory.

A series (`7.3`) stands for its pinned version, so that results can be compared; archives drop old versions,
and then the newest one of the series is taken. An exact version (`7.3.4`) is taken as it is.

Three generations of packaging are around: up to 6.18 everything is in `linux-image-…`; later kernels have
the image in `linux-binary-…` (or only `linux-binary-unsigned-…` before it has been signed), modules in
`linux-modules-…`, System.map and configuration in `linux-base-…`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from bpfseal.runtime.vm.apt import Apt
from bpfseal.runtime.vm.result import VmError, VmUnavailable

__all__ = ["PINNED", "Kernel", "cache_directory", "obtain"]

PINNED = {"6.18": "6.18.15", "7.2": "7.2.13", "7.3": "7.3.4"}
SUITES = ("trixie-backports", "sid")

_NAME = re.compile(r"linux-(binary|binary-unsigned|image)-((\d+\.\d+)\.\d+)(\+deb\d+)-cloud-amd64")
# In this order: the signed image, else the unsigned one, else the old all-in-one package (which for later
# kernels is an empty metapackage).
_PREFERENCE = ("binary", "binary-unsigned", "image")
_T = TypeVar("_T")
_SPACE = 400 << 20  # bytes: download, unpacked copy, package lists


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel in the cache."""

    version: str
    """`7.3.4`"""
    release: str
    """`7.3.4+deb13-cloud-amd64`, what uname -r will say"""
    image: Path
    """bzImage"""
    modules: Path
    """the directory that belongs at /lib/modules/RELEASE"""

    @property
    def series(self) -> str:
        return self.version.rpartition(".")[0]


def cache_directory() -> Path:
    """$XDG_CACHE_HOME/bpfseal/kernels or ~/.cache/bpfseal/kernels."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base).resolve() / "bpfseal" / "kernels"


def cached(wanted: str) -> Kernel | None:
    """The kernel for a series or version if it is in the cache: the pinned one, else the newest."""
    found: list[Kernel] = []
    for file in cache_directory().glob("*/kernel.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            entry = json.loads(file.read_text())
            here = file.parent
            kernel = Kernel(entry["version"], entry["release"], here / entry["image"], here / entry["modules"])
            if wanted in (kernel.series, kernel.version) and kernel.image.is_file() and kernel.modules.is_dir():
                found.append(kernel)
    return _best(wanted, {kernel.version: kernel for kernel in found})


def _best(wanted: str, by_version: dict[str, _T]) -> _T | None:
    pinned = PINNED.get(wanted)
    if pinned in by_version:
        return by_version[pinned]
    if not by_version:
        return None
    return by_version[max(by_version, key=_version_key)]


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def obtain(wanted: str, *, say: Callable[[str], object] | None = None) -> Kernel:
    """The kernel for a series or version, downloaded if need be.

    Safe to call from several processes: one downloads, the others wait. Nothing half-done is ever found,
    as a kernel appears in the cache by a rename. `say` is told about a download before it starts.

    Raises VmUnavailable (no network, unknown series, disk full, …) and VmError for a malformed `wanted`.
    """
    if not re.fullmatch(r"\d+\.\d+(\.\d+)?", wanted):
        raise VmError(f"not a kernel series: {wanted!r}", hint="try 6.18, 7.2 or 7.3", status=2)
    if platform.machine() != "x86_64":
        raise VmUnavailable(f"test kernels are for x86_64; this machine is {platform.machine()}")
    if kernel := cached(wanted):
        return kernel
    directory = cache_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory):
            if kernel := cached(wanted):
                return kernel
            if shutil.disk_usage(directory).free < _SPACE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return _fetch(wanted, directory, say or (lambda _text: None))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise VmUnavailable(
                f"the disk with {directory} is full",
                hint=f"a test kernel needs {_SPACE >> 20} MB there; XDG_CACHE_HOME moves it elsewhere",
            ) from None
        raise VmUnavailable(f"cannot use the kernel cache {directory}: {error.strerror}") from None


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    with open(directory / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(wanted: str, directory: Path, say: Callable[[str], object]) -> Kernel:
    apt = Apt(directory / "apt", SUITES)
    say("fetching the list of test kernels")
    apt.update()
    packages = apt.packages()
    version, names = _choose(wanted, packages)
    say(f"fetching Linux {version}")
    for leftover in directory.glob("new-*"):  # of a killed process: we hold the lock, so it is nobody's
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix="new-") as work:
        downloads, tree = Path(work, "packages"), Path(work, "tree")
        downloads.mkdir()
        tree.mkdir(mode=0o755)
        for package in apt.download(names, downloads):
            apt.unpack(package, tree)
        entry = _complete(tree, version)
        (tree / "kernel.json").write_text(json.dumps(entry, indent=1) + "\n")
        target = directory / entry["release"]
        shutil.rmtree(target, ignore_errors=True)  # without a valid kernel.json, or we would not be here
        tree.rename(target)
    shutil.rmtree(directory / "apt" / "cache", ignore_errors=True)
    kernel = cached(version)
    if kernel is None:
        raise VmUnavailable(f"Linux {version} disappeared from {directory} while it was being unpacked")
    return kernel


def _choose(wanted: str, packages: dict[str, list[str]]) -> tuple[str, list[str]]:
    """Version and package names to download for a series or exact version."""
    images: dict[str, dict[str, str]] = {}  # version → kind → name
    for name in packages:
        if match := _NAME.fullmatch(name):
            images.setdefault(match[2], {})[match[1]] = name
    candidates = {v: kinds for v, kinds in images.items() if wanted in (v, v.rpartition(".")[0])}
    chosen = _best(wanted, {version: version for version in candidates})
    if chosen is None:
        series = sorted({v.rpartition(".")[0] for v in images}, key=_version_key)
        raise VmUnavailable(
            f"Debian has no cloud kernel {wanted} in {' or '.join(SUITES)}",
            hint=f"there are {', '.join(series)}" if series else None,
        )
    kinds = candidates[chosen]
    image = next(kinds[kind] for kind in _PREFERENCE if kind in kinds)
    release = image.split("-", 2)[2].removeprefix("unsigned-") if "-unsigned-" in image else image.split("-", 2)[2]
    parts = [f"linux-modules-{release}", f"linux-base-{release}"]
    return chosen, [image, *(part for part in parts if part in packages)]


def _complete(tree: Path, version: str) -> dict[str, str]:
    """Check an unpacked kernel, make its module index, describe it. Raises VmUnavailable."""
    bases = list((tree / "usr/lib/modules").glob(f"{version}*"))
    images = [*tree.glob("usr/lib/modules/*/vmlinuz*"), *tree.glob("boot/vmlinuz-*")]
    if len(bases) != 1 or len(images) != 1 or not (bases[0] / "kernel").is_dir():
        raise VmUnavailable(f"the packages of Linux {version} are not laid out in any way known here")
    release = bases[0].name
    if depmod := shutil.which("depmod", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"):
        lib = tree / "lib"  # depmod looks below lib/modules
        lib.symlink_to("usr/lib")
        subprocess.run([depmod, "-b", str(tree), release], check=False, stdin=subprocess.DEVNULL)
    return {
        "version": version,
        "release": release,
        "image": str(images[0].relative_to(tree)),
        "modules": str(bases[0].relative_to(tree)),
    }
