"""A Debian archive in a directory, signed with a key made for the occasion."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path


class Key:
    """A signing key in a GnuPG home of its own."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700)
        self.home = directory
        self._gpg("--passphrase", "", "--quick-generate-key", "archive@example.org", "ed25519", "sign", "never")

    def _gpg(self, *arguments: str) -> bytes:
        command = ["gpg", "--homedir", str(self.home), "--batch", "--yes", "--pinentry-mode", "loopback", *arguments]
        return subprocess.run(command, check=True, capture_output=True).stdout

    def export(self) -> bytes:
        return self._gpg("--export")

    def sign(self, source: Path, target: Path) -> None:
        self._gpg("--clearsign", "--digest-algo", "SHA256", "--output", str(target), str(source))


class Archive:
    """`add` packages to suites, then `publish` each suite with a key. `uri` is what goes into a source list."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = f"file:{root}"
        self._packages: dict[str, list[Path]] = {}

    def add(self, suite: str, name: str, version: str, files: dict[str, bytes]) -> Path:
        tree = self.root / "build" / f"{name}_{version}"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN/control").write_text(
            f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: nobody <n@example.org>\n"
            "Description: for a test\n"
        )
        for path, content in files.items():
            file = tree / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        pool = self.root / "pool"
        pool.mkdir(exist_ok=True)
        package = pool / f"{name}_{version}_amd64.deb"
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Znone", "-b", str(tree), str(package)],
            check=True,
            capture_output=True,
        )
        self._packages.setdefault(suite, []).append(package)
        return package

    def publish(self, suite: str, key: Key) -> None:
        directory = self.root / "dists" / suite
        index = directory / "main/binary-amd64/Packages"
        index.parent.mkdir(parents=True, exist_ok=True)
        entries = []
        for package in self._packages.get(suite, []):
            control = subprocess.run(
                ["dpkg-deb", "-f", str(package)], check=True, capture_output=True, text=True
            ).stdout
            digest = hashlib.sha256(package.read_bytes()).hexdigest()
            entries.append(
                f"{control}Filename: {package.relative_to(self.root)}\n"
                f"Size: {package.stat().st_size}\nSHA256: {digest}\n"
            )
        content = "\n".join(entries).encode()
        index.write_bytes(content)
        release = directory / "Release"
        release.write_text(
            f"Origin: test\nSuite: {suite}\nCodename: {suite}\nArchitectures: amd64\nComponents: main\n"
            f"Date: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n"
            f" {hashlib.sha256(content).hexdigest()} {len(content)} main/binary-amd64/Packages\n"
        )
        key.sign(release, directory / "InRelease")
        os.unlink(release)
