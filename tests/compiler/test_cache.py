"""The cache of bundles: what is in a key, what is given back, what is not."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from bpfseal.compiler import cache
from bpfseal.signer.bundle import BUNDLE_VERSION, Attach, Attributes, Bundle, ProgramSpec, encode


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cache, "directory", lambda: tmp_path / "programs")
    return tmp_path / "programs"


def bundle(target: str = "") -> bytes:
    program = ProgramSpec(
        name="p",
        type=2,
        insns=b"\x95" + bytes(7),
        declared=Attributes(insns=1),
        attach=(Attach(kind="uprobe", probe="u", target=target),),
    )
    return encode(Bundle(version=BUNDLE_VERSION, programs=(program,), maps=()))


def test_round_trip() -> None:
    name = cache.key("BEGIN { }")
    assert cache.load(name) is None
    cache.store(name, bundle())
    assert cache.load(name) == bundle()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((("BEGIN { 1 }",), {}), (("BEGIN { 2 }",), {})),
        ((("BEGIN { }", ("a",)), {}), (("BEGIN { }", ("b",)), {})),
        ((("BEGIN { }", ("a", "b")), {}), (("BEGIN { }", ("ab",)), {})),
        ((("BEGIN { }", (), {"pid": 1}), {}), (("BEGIN { }", (), {"pid": 2}), {})),
        ((("BEGIN { }",), {"extra": ("x",)}), (("BEGIN { }",), {})),
    ],
)
def test_keys_differ(one: tuple[tuple, dict], other: tuple[tuple, dict]) -> None:  # type: ignore[type-arg]
    assert cache.key(*one[0], **one[1]) == cache.key(*one[0], **one[1])
    assert cache.key(*one[0], **one[1]) != cache.key(*other[0], **other[1])


def test_environment_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache.key("BEGIN { }")
    monkeypatch.setenv("BPFTRACE_MAX_STRLEN", "100")
    assert cache.key("BEGIN { }") != before


@pytest.mark.parametrize("text", ['import "x";', "#include <linux/fs.h>", 'BEGIN { print(cgroupid("/a")); }'])
def test_what_depends_on_other_files_is_not_kept(text: str) -> None:
    assert cache.key(text) == ""
    cache.store("", bundle())
    assert cache.load("") is None


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text"])
def test_damaged_entries_are_none(folder: Path, damage: str) -> None:
    name = cache.key("BEGIN { }")
    cache.store(name, bundle())
    data = bytearray((folder / name).read_bytes())
    match damage:
        case "flip":
            data[len(data) // 2] ^= 1
        case "cut":
            del data[-1:]
        case "empty":
            data.clear()
        case _:
            data[:] = b"#!/bin/sh\n"
    (folder / name).write_bytes(data)
    assert cache.load(name) is None
    assert not (folder / name).exists()


def test_traced_file_that_changed(tmp_path: Path) -> None:
    file = tmp_path / "program"
    file.write_bytes(b"one")
    name = cache.key("uprobe:x:y { }")
    cache.store(name, bundle(str(file)))
    assert cache.load(name) == bundle(str(file))
    file.write_bytes(b"another")
    assert cache.load(name) is None


def test_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_MAX_ENTRIES", 5)
    for n in range(20):
        name = cache.key(f"BEGIN {{ {n} }}")
        cache.store(name, bundle())
        os.utime(folder / name, ns=(n, n))
    assert len(list(folder.iterdir())) <= 6
    assert cache.load(name) == bundle()


def test_concurrent_writers(folder: Path) -> None:
    name = cache.key("BEGIN { }")
    threads = [threading.Thread(target=cache.store, args=(name, bundle())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.load(name) == bundle()
    assert [p.name for p in folder.iterdir()] == [name]


def test_no_place_to_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    monkeypatch.setattr(cache, "directory", lambda: file / "below")
    cache.store(cache.key("BEGIN { }"), bundle())
    assert cache.load(cache.key("BEGIN { }")) is None
