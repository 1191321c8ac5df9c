"""A private apt: sources, lists and caches of our own, so that the system's apt state is never touched.

apt does what it is good at: signatures of the archive (with Debian's own keyring), checksums of packages,
retries, proxies from the system's configuration. No package is installed, only downloaded and unpacked.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bpfseal.runtime.vm.result import VmUnavailable

__all__ = ["Apt"]

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEFAULT_MIRROR = "http://deb.debian.org/debian"
_TIMEOUT = 900.0  # seconds for one apt call

# `#clear` first: hooks of the system's configuration (image builders like to delete caches after every
# update) are about the system's state, which is none of our business.
_CONFIGURATION = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
APT::Architecture "amd64";
#clear APT::Architectures;
APT::Architectures {{ "amd64"; }};
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
Dir::State "{root}/state";
Dir::State::status "{root}/state/status";
Dir::Cache "{root}/cache";
Dir::Log "{root}/log";
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "{root}/sources.d";
Dir::Etc::preferences "{root}/preferences";
Dir::Etc::preferencesparts "{root}/preferences.d";
Dir::Etc::trusted "{root}/trusted.gpg";
Dir::Etc::trustedparts "{root}/trusted.gpg.d";
"""


class Apt:
    """apt below `root`. `suites` are those of the archive at `uri` to look in.

    `uri` defaults to the Debian mirror this machine is configured to use, `codename` to its own release.
    """

    def __init__(
        self,
        root: Path,
        suites: Sequence[str],
        *,
        keyring: Path = KEYRING,
        uri: str | None = None,
        codename: str | None = None,
    ) -> None:
        self.root = root
        self.suites = tuple(suites)
        self.keyring = keyring
        self.uri = uri or mirror()
        self.codename = codename or _own_codename()

    def update(self) -> None:
        """Fetch the package lists. Raises VmUnavailable: no apt, no keyring, no network, bad signature."""
        for tool in ("apt-get", "apt-cache", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise VmUnavailable(
                    f"{tool} is not installed", hint="test kernels are Debian packages and need apt and dpkg"
                )
        if not self.keyring.is_file():
            raise VmUnavailable(
                f"{self.keyring} is missing: the archive's signature cannot be checked",
                hint="install it: apt-get install debian-archive-keyring",
            )
        self._write_configuration()
        keyring = self.keyring
        for _ in range(2):
            self._write_source(keyring)
            result = self._call(["apt-get", "-q", "update"])
            if result.returncode == 0:
                return
            if "NO_PUBKEY" not in result.stderr or keyring != self.keyring:
                break
            keyring = self._newer_keyring()
        raise self._failed("fetching the package lists", result)

    def _write_configuration(self) -> None:
        for name in ("state/lists/partial", "cache/archives/partial", "log", "sources.d"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "state/status").touch()
        self._configuration.write_text(_CONFIGURATION.format(root=self.root))

    @property
    def _configuration(self) -> Path:
        return self.root / "apt.conf"

    def _write_source(self, keyring: Path, suites: Sequence[str] | None = None) -> None:
        (self.root / "sources.d/debian.sources").write_text(
            f"Types: deb\nURIs: {self.uri}\nSuites: {' '.join(suites or self.suites)}\nComponents: main\n"
            # Packages only: some systems are configured to fetch file lists and icons as well
            f"Architectures: amd64\nTargets: Packages\nSigned-By: {keyring}\n"
        )

    def _newer_keyring(self) -> Path:
        """Debian's keyring as of the stable release that this machine trusts already.

        Keys of a new release are put into the keyring package of the old ones by point releases; a machine
        that has not been updated since lacks them. The package comes from the machine's own release, so
        nothing is trusted that is not vouched for by a key the machine has.
        """
        self._write_source(self.keyring, [self.codename])
        result = self._call(["apt-get", "-q", "update"])
        if result.returncode:
            raise self._failed("fetching the package lists of this release", result)
        target = self.root / "keyring"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for package in self.download(["debian-archive-keyring"], target):
            self.unpack(package, target)
        return target / str(KEYRING).lstrip("/")

    def packages(self) -> dict[str, list[str]]:
        """Every kernel-related package of the lists: name → versions, newest first."""
        result = self._call(["apt-cache", "madison", *self._names()])
        if result.returncode:
            raise self._failed("reading the package lists", result)
        found: dict[str, list[str]] = {}
        for line in result.stdout.splitlines():
            fields = [field.strip() for field in line.split("|")]
            if len(fields) == 3 and fields[1] not in found.setdefault(fields[0], []):
                found[fields[0]].append(fields[1])
        return found

    def _names(self) -> list[str]:
        result = self._call(["apt-cache", "pkgnames", "linux-"])
        if result.returncode:
            raise self._failed("reading the package lists", result)
        return sorted(name for name in result.stdout.split() if name.endswith("-cloud-amd64"))

    def download(self, packages: Sequence[str], directory: Path) -> list[Path]:
        """Download `name` or `name=version` into an empty directory; apt verifies size and checksum."""
        result = self._call(["apt-get", "-q", "download", *packages], cwd=directory)
        if result.returncode:
            raise self._failed(f"downloading {', '.join(packages)}", result)
        return sorted(directory.glob("*.deb"))

    def unpack(self, package: Path, directory: Path) -> None:
        """Unpack one package's files below `directory`; no script of the package is run."""
        result = self._call(["dpkg-deb", "-x", str(package), str(directory)])
        if result.returncode:
            raise self._failed(f"unpacking {package.name}", result)

    def _call(self, command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        if command[0].startswith("apt-"):
            command = [command[0], "-c", str(self._configuration), *command[1:]]
        try:
            return subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                cwd=cwd,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
                timeout=_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise VmUnavailable(f"{command[0]} did not end within {_TIMEOUT:g} s") from None

    def _failed(self, what: str, result: subprocess.CompletedProcess[str]) -> VmUnavailable:
        text = result.stderr
        if "No space left on device" in text:
            return VmUnavailable(f"{what}: the disk with {self.root} is full", hint="free some space there")
        if re.search(r"Could not (resolve|connect)|Temporary failure|Network is unreachable|timed out", text):
            return VmUnavailable(
                f"{what}: cannot reach {self.uri}",
                hint="test kernels are downloaded once; connect to the network, or set http_proxy",
            )
        errors = [line[3:].strip() for line in text.splitlines() if line.startswith(("E: ", "W: "))]
        return VmUnavailable(f"{what}: {errors[0] if errors else text.strip() or 'unknown failure'}")


def mirror() -> str:
    """The Debian archive that this machine is configured to use, else the public default."""
    try:
        result = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI)"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return DEFAULT_MIRROR
    for line in result.stdout.splitlines():
        uri = line.rstrip("/")
        if uri.endswith("/debian") and uri.startswith(("http://", "https://", "file:")):
            return uri
    return DEFAULT_MIRROR


def _own_codename() -> str:
    with open("/etc/os-release") as file:
        match = re.search(r'^VERSION_CODENAME="?(\w+)', file.read(), re.MULTILINE)
    return match[1] if match else "stable"
