"""Features of the running kernel and what `bpfseal doctor` says about them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from bpfseal.runtime import doctor, features

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("bpf_permitted")]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "bpfseal"


def test_what_is_certain_here(cache: Path) -> None:
    """Facts that can be checked in another way."""
    assert features.get("rawtracepoint").ok
    assert features.get("ringbuf").ok
    assert features.get("btf").ok == os.path.exists("/sys/kernel/btf/vmlinux")
    assert features.get("kprobe").ok == os.path.exists("/sys/bus/event_source/devices/kprobe/type")
    for feature in features.probe_all():
        assert feature.ok or feature.why, feature.name
        assert "\n" not in feature.why + feature.detail


def test_results_are_kept_for_this_boot(cache: Path) -> None:
    first = features.probe_all()
    (file,) = cache.iterdir()
    assert features.probe_all() == first
    changed = json.loads(file.read_text())
    changed[0]["detail"] = "from the cache"
    file.write_text(json.dumps(changed))
    assert features.probe_all()[0].detail == "from the cache"
    assert features.probe_all(refresh=True) == first


@pytest.mark.parametrize("damage", ["", "{", "[]", '[{"name": 1}]', '[{"x": 1}]', "null", "\x00"])
def test_a_damaged_cache_is_made_anew(cache: Path, damage: str) -> None:
    first = features.probe_all()
    (file,) = cache.iterdir()
    file.write_text(damage)
    assert features.probe_all() == first


def test_a_cache_that_cannot_be_written_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert features.get("ringbuf").ok


def test_probes_leave_nothing(cache: Path) -> None:
    from tests.loader.conftest import objects_named, open_fds

    features.probe_all()
    before = open_fds()
    features.probe_all(refresh=True)
    assert open_fds() == before
    left = objects_named("bpfseal_feature")
    for _ in range(6000):  # freed after a grace period, which takes long on a busy machine
        if not left:
            break
        time.sleep(0.02)
        left = objects_named("bpfseal_feature")
    assert left == []


def test_doctor_in_words_and_in_json(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    words = capsys.readouterr().out
    assert doctor.main(["--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    for entry in entries:
        assert f"  {entry['name']}" in words
    signing = next(entry for entry in entries if entry["name"] == "signing ABI")
    assert signing["ok"] or signing["why"].startswith("none: ")
