"""Choosing, fetching and caching kernels, against an archive of our own; no network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bpfseal.runtime import vm
from bpfseal.runtime.vm import kernels, qemu
from bpfseal.runtime.vm.apt import KEYRING, Apt
from tests.vm.archive import Archive, Key

needs_tools = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("gpg", "apt-get", "dpkg-deb")), reason="needs apt, dpkg and gpg"
)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return Key(tmp_path_factory.mktemp("key") / "home")


@pytest.fixture(scope="module")
def keyring(key: Key, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keyring") / "test.gpg"
    path.write_bytes(key.export())
    return path


def image(release: str) -> dict[str, bytes]:
    return {f"usr/lib/modules/{release}/vmlinuz": b"kernel " + release.encode()}


def modules(release: str) -> dict[str, bytes]:
    return {f"usr/lib/modules/{release}/kernel/fs/overlayfs/overlay.ko.xz": b"module"}


@pytest.fixture
def archive(tmp_path: Path, key: Key) -> Archive:
    """7.3.4 in three packages, not yet signed; 6.18.9 and 6.18.20 in one each."""
    made = Archive(tmp_path / "archive")
    new = "7.3.4+deb13-cloud-amd64"
    made.add("trixie-backports", f"linux-binary-unsigned-{new}", "7.3.4-1", image(new))
    made.add("trixie-backports", f"linux-modules-{new}", "7.3.4-1", modules(new))
    made.add("trixie-backports", f"linux-image-{new}-dbg", "7.3.4-1", {})
    made.add("sid", f"linux-image-{new}", "7.3.4-1", {})
    for old in ("6.18.9+deb13-cloud-amd64", "6.18.20+deb14-cloud-amd64"):
        version = old.partition("+")[0] + "-1"
        made.add("sid", f"linux-image-{old}", version, {f"boot/vmlinuz-{old}": old.encode(), **modules(old)})
    for suite in kernels.SUITES:
        made.publish(suite, key)
    return made


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/bpfseal/kernels"


@pytest.fixture
def own_archive(archive: Archive, keyring: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """`kernels.obtain` uses the archive above."""
    monkeypatch.setattr(
        kernels, "Apt", lambda root, suites: Apt(root, suites, keyring=keyring, uri=archive.uri, codename="old")
    )
    return archive


@needs_tools
def test_obtain(own_archive: Archive, cache: Path) -> None:
    said: list[str] = []
    kernel = kernels.obtain("7.3", say=said.append)
    assert (kernel.version, kernel.series, kernel.release) == ("7.3.4", "7.3", "7.3.4+deb13-cloud-amd64")
    assert kernel.image.read_bytes() == b"kernel 7.3.4+deb13-cloud-amd64"
    assert (kernel.modules / "kernel/fs/overlayfs/overlay.ko.xz").is_file()
    assert said == ["fetching the list of test kernels", "fetching Linux 7.3.4"]
    shutil.rmtree(own_archive.root)  # from here on there is no archive
    assert kernels.obtain("7.3", say=said.append) == kernels.obtain("7.3.4") == kernel
    assert len(said) == 2
    assert sorted(path.name for path in cache.iterdir()) == ["7.3.4+deb13-cloud-amd64", "apt", "lock"]


@needs_tools
def test_newest_of_the_series_when_the_pinned_one_is_gone(own_archive: Archive, cache: Path) -> None:
    assert kernels.PINNED["6.18"] not in ("6.18.9", "6.18.20")
    assert kernels.obtain("6.18").version == "6.18.20"
    assert kernels.obtain("6.18.9").version == "6.18.9"
    assert kernels.obtain("6.18").version == "6.18.20"  # as a number, not as a string


@needs_tools
def test_unknown_series(own_archive: Archive, cache: Path) -> None:
    with pytest.raises(vm.VmUnavailable, match=r"no cloud kernel 5\.4") as caught:
        kernels.obtain("5.4")
    assert caught.value.hint == "there are 6.18, 7.3"


@needs_tools
def test_two_processes_download_once(own_archive: Archive, keyring: Path, cache: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from bpfseal.runtime.vm import kernels, apt\n"
        f"kernels.Apt = lambda root, suites: apt.Apt(root, suites, keyring=Path({str(keyring)!r}),"
        f" uri={own_archive.uri!r})\n"
        "print(kernels.obtain('7.3', say=print).image)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(len(lines) for lines in outputs) == [1, 3]
    assert outputs[0][-1] == outputs[1][-1]


@needs_tools
def test_leftovers_and_half_made_entries_are_not_used(own_archive: Archive, cache: Path) -> None:
    half = cache / "7.3.4+deb13-cloud-amd64"
    (half / "usr").mkdir(parents=True)
    (cache / "new-killed" / "tree").mkdir(parents=True)
    (cache / "7.3.9" / "tree").mkdir(parents=True)
    for text in (
        "{",
        "[]",
        '{"version": "7.3.9"}',
        '{"version": "7.3.9", "release": "r", "image": "i", "modules": "m"}',
    ):
        (cache / "7.3.9" / "kernel.json").write_text(text)
        assert kernels.cached("7.3") is None
    assert kernels.obtain("7.3").version == "7.3.4"
    assert not (cache / "new-killed").exists()


@needs_tools
def test_package_that_was_tampered_with(own_archive: Archive, cache: Path) -> None:
    for package in (own_archive.root / "pool").glob("linux-binary-*.deb"):
        data = bytearray(package.read_bytes())
        data[-1] ^= 1
        package.write_bytes(data)
    with pytest.raises(vm.VmUnavailable, match="downloading linux-binary-unsigned-7"):
        kernels.obtain("7.3")
    assert kernels.cached("7.3") is None
    assert list(cache.glob("7.*")) == list(cache.glob("new-*")) == []


@needs_tools
def test_archive_signed_by_a_stranger(own_archive: Archive, cache: Path, tmp_path: Path) -> None:
    stranger = Key(tmp_path / "stranger")
    own_archive.publish("sid", stranger)
    with pytest.raises(vm.VmUnavailable, match="fetching the package lists"):
        kernels.obtain("7.3")


@needs_tools
def test_archive_without_signature(own_archive: Archive, cache: Path) -> None:
    for file in own_archive.root.glob("dists/*/InRelease"):
        lines = file.read_text().split("\n\n", 1)[1].partition("-----BEGIN PGP SIGNATURE-----")[0]
        (file.parent / "Release").write_text(lines)
        file.unlink()
    with pytest.raises(vm.VmUnavailable, match="fetching the package lists"):
        kernels.obtain("7.3")


@needs_tools
def test_newer_keyring_comes_from_the_own_release(archive: Archive, keyring: Path, key: Key, tmp_path: Path) -> None:
    """The archive is signed with a key this machine lacks; its own release vouches for it."""
    new = Key(tmp_path / "new")
    archive.publish("sid", new)
    both = keyring.read_bytes() + new.export()
    archive.add("old", "debian-archive-keyring", "2", {str(KEYRING).lstrip("/"): both})
    archive.publish("old", key)
    apt = Apt(tmp_path / "apt", ["sid"], keyring=keyring, uri=archive.uri, codename="old")
    apt.update()
    assert "linux-image-6.18.20+deb14-cloud-amd64" in apt.packages()
    # and not without that: the same, vouched for by nobody
    archive.publish("old", new)
    apt = Apt(tmp_path / "apt2", ["sid"], keyring=keyring, uri=archive.uri, codename="old")
    with pytest.raises(vm.VmUnavailable, match="package lists of this release"):
        apt.update()


@needs_tools
def test_system_state_of_apt_is_not_used(own_archive: Archive, cache: Path) -> None:
    kernels.obtain("7.3")
    names = (
        *("Dir::State", "Dir::State::lists", "Dir::Cache", "Dir::Cache::archives", "Dir::Log"),
        *("Dir::Etc::sourceparts", "Dir::Etc::preferencesparts", "Dir::Etc::trustedparts"),
    )
    pairs = [word for name in names for word in (name.replace(":", "_"), f"{name}/d")]
    output = subprocess.run(
        ["apt-config", "-c", str(cache / "apt/apt.conf"), "shell", *pairs],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    directories = [line.partition("=")[2].strip("'") for line in output.splitlines()]
    assert len(directories) == len(names)
    assert [path for path in directories if not path.startswith(f"{cache}/apt/")] == []


@needs_tools
def test_hooks_of_the_system_are_not_run(
    own_archive: Archive, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Image builders like to have caches deleted after every update."""
    hooks = ("APT::Update::Pre-Invoke", "APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success")
    (tmp_path / "hooks").write_text("".join(f'{hook} {{"touch {tmp_path}/ran";}};\n' for hook in hooks))
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "hooks"))
    kernels.obtain("7.3")
    assert not (tmp_path / "ran").exists()


@needs_tools
def test_no_network(tmp_path: Path, keyring: Path) -> None:
    apt = Apt(tmp_path / "apt", ["sid"], keyring=keyring, uri="http://127.0.0.1:9/debian", codename="old")
    with pytest.raises(vm.VmUnavailable, match=r"cannot reach http://127\.0\.0\.1:9/debian") as caught:
        apt.update()
    assert caught.value.hint is not None


def test_no_keyring(tmp_path: Path) -> None:
    apt = Apt(tmp_path / "apt", ["sid"], keyring=tmp_path / "none.gpg", uri="http://127.0.0.1:9/", codename="old")
    with pytest.raises(vm.VmUnavailable, match="signature cannot be checked") as caught:
        apt.update()
    assert caught.value.hint == "install it: apt-get install debian-archive-keyring"


def test_full_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_SPACE", 1 << 60)
    with pytest.raises(vm.VmUnavailable, match="is full"):
        kernels.obtain("7.3")


def test_cache_directory_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(vm.VmUnavailable, match="cannot use the kernel cache"):
        kernels.obtain("7.3")


@pytest.mark.parametrize("wanted", ["", "7", "seven", "7.3.4.5", "7.3; rm", "../7.3", "7.3\n"])
def test_malformed_version(wanted: str, cache: Path) -> None:
    with pytest.raises(vm.VmError, match="not a kernel series") as caught:
        kernels.obtain(wanted)
    assert caught.value.status == 2


def test_pinned_before_newest_in_the_cache(cache: Path) -> None:
    for version in ("7.3.2", "7.3.4", "7.3.11"):
        directory = cache / version
        (directory / "modules").mkdir(parents=True)
        (directory / "image").touch()
        entry = {"version": version, "release": f"{version}-x", "image": "image", "modules": "modules"}
        (directory / "kernel.json").write_text(json.dumps(entry))
    pinned = kernels.cached("7.3")
    assert pinned is not None
    assert pinned.version == kernels.PINNED["7.3"] == "7.3.4"
    shutil.rmtree(cache / "7.3.4")
    newest = kernels.cached("7.3")
    assert newest is not None
    assert newest.version == "7.3.11"


def test_no_qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(vm.VmUnavailable, match="qemu-system-x86_64 is not installed") as caught:
        vm.boot("7.3")
    assert caught.value.hint == "install it: apt-get install qemu-system-x86"


def test_no_virtiofsd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(qemu, "_VIRTIOFSD", ())
    with pytest.raises(vm.VmUnavailable, match="virtiofsd is not installed"):
        qemu.find_virtiofsd()


def test_both_virtiofsds_are_known(tmp_path: Path) -> None:
    """The one in C has -o options only; the later ones in Rust announce submounts unless told not to."""
    daemon = tmp_path / "virtiofsd"

    def arguments(usage: str) -> list[str]:
        daemon.write_text(f"#!/bin/sh\necho '{usage}'\n")
        daemon.chmod(0o755)
        return qemu.virtiofsd_arguments(str(daemon), "/run", privileged=False)[1:]

    assert arguments("-o source=PATH") == ["-o", "source=/run,cache=auto,sandbox=chroot,log_level=err"]
    assert arguments("--shared-dir DIR")[:2] == ["--shared-dir", "/run"]
    assert "--no-announce-submounts" not in arguments("--shared-dir DIR")
    assert "--no-announce-submounts" in arguments("--shared-dir DIR --no-announce-submounts")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command given"),
        (["--"], "no command given"),
        (["--no-such-option", "--", "true"], "unrecognized arguments"),
        (["--timeout", "0", "--", "true"], "must be positive"),
        (["--timeout", "nan", "--", "true"], "must be positive"),
        (["--timeout", "inf", "--", "true"], "must be positive"),
        (["--cpus", "0", "--", "true"], "from 1 to 64"),
        (["--mem", "1T", "--", "true"], "not a size"),
        (["--mem", "1M", "--", "true"], "256M"),
        (["--share", "/no/such", "--", "true"], "cannot share"),
        (["--share", "/", "--", "true"], "cannot share"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], message: str) -> None:
    if shutil.which("qemu-system-x86_64") is None and arguments[:1] in (["--mem"], ["--share"]):
        pytest.skip("QEMU is looked for first")
    result = subprocess.run(
        [sys.executable, "-m", "bpfseal", "vm", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    assert lines[0].startswith("ERROR: ")
    assert message in lines[0]
    assert all(line.startswith("HINT: ") for line in lines[1:])
