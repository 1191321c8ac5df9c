"""The commands on this kernel: same output as a trace from the text, and clear words where a file does not fit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import bpfseal
from bpfseal.runtime.ahead import place, store
from bpfseal.runtime.listing import list_probes
from bpfseal.signer.sealed_file import KernelId, SealedFile

from .conftest import Cli, Pair

pytestmark = pytest.mark.host
SCRIPT = 'BEGIN { printf("%d %s\\n", 3 * 7, "words"); @x["a"] = 2; @y = 5; exit(); }'


@pytest.fixture
def built(cli: Cli, tmp_path: Path, bpf_permitted: None) -> Path:
    cli("build", "-o", tmp_path / "t.bpfseal", "-e", SCRIPT)
    return tmp_path / "t.bpfseal"


def rewrite(path: Path, **changes: object) -> None:
    file, _ = store.read(str(path))
    store.write(str(path), msgspec.structs.replace(file, **changes))


def test_a_file_runs_as_its_text_does(cli: Cli, built: Path) -> None:
    text = cli("-e", SCRIPT).stdout
    assert "21 words" in text
    assert cli("run", built).stdout == text
    assert cli("run", "-f", "json", built).stdout == cli("-f", "json", "-e", SCRIPT).stdout


def test_parameters_and_warnings_are_those_of_the_build(cli: Cli, tmp_path: Path, bpf_permitted: None) -> None:
    script = tmp_path / "p.bt"
    script.write_text('BEGIN { printf("%d %s\\n", $1, str($2)); exit(); }')
    cli("build", "-o", tmp_path / "p.bpfseal", script, "41", "abc")
    assert "41 abc" in cli("run", tmp_path / "p.bpfseal").stdout


def test_sealing_is_policy_and_record(cli: Cli, built: Path, pair: Pair, tmp_path: Path) -> None:
    done = cli("seal", "--key", pair.key, "--cert", pair.cert, built)
    assert "by rule private" in done.stdout
    seals = [json.loads(line) for line in cli.audit.read_text().splitlines()]
    (record,) = (line for line in seals if line["event"] == "seal")
    file, _ = store.read(str(built))
    assert record["seq"] == file.seals[0].record
    assert record["kernel"]["btf"] == file.kernel.btf.hex()
    assert record["source"] == SCRIPT
    assert "21 words" in cli("run", built).stdout

    policy = tmp_path / "policy.toml"
    policy.write_text('version = 1\n[[rule]]\nname = "little"\nuid = 0\nprobes = "tracepoint:*"\n')
    before = built.read_bytes()
    refused = cli("seal", "--key", pair.key, "--cert", pair.cert, "--policy", policy, built, status=1)
    assert "not granted" in refused.stderr
    assert built.read_bytes() == before
    events = [json.loads(line)["event"] for line in cli.audit.read_text().splitlines()]
    assert events.count("refuse") == 1


@pytest.mark.slow
def test_seals_of_several_keys_stay_beside_each_other(cli: Cli, built: Path, pair: Pair, other: Pair) -> None:
    for one in (pair, other, pair):
        cli("seal", "--key", one.key, "--cert", one.cert, built)
    file, _ = store.read(str(built))
    assert len({seal.certificates[0] for seal in file.seals}) == 2
    assert len(file.seals) == len({(seal.certificates[0], seal.abi) for seal in file.seals})
    for one in (pair, other):
        assert cli("verify", "--cert", one.cert, built).stdout.count(": good") >= 1


def test_verify_says_no(cli: Cli, built: Path, pair: Pair, other: Pair) -> None:
    assert "not sealed" in cli("verify", built, status=1).stdout
    cli("seal", "--key", pair.key, "--cert", pair.cert, built)
    assert "which is not the given" in cli("verify", "--cert", other.cert, built, status=1).stdout
    rewrite(built, made_by="somebody else")
    found = json.loads(cli("verify", "--json", "--cert", pair.cert, built, status=1).stdout)
    assert not found["good"]
    assert "not what was sealed" in found["seals"][0]["trouble"]


def test_inspect_shows_it_all(cli: Cli, built: Path, pair: Pair) -> None:
    cli("seal", "--key", pair.key, "--cert", pair.cert, built)
    facts = json.loads(cli("inspect", "--json", "--cert", pair.cert, built).stdout)
    assert facts["source"] == SCRIPT
    assert facts["kernel"]["release"] == os.uname().release
    assert facts["runs_here"] == ""
    assert [p["name"] for p in facts["analysis"]["programs"]] == [p["name"] for p in facts["programs"]]
    assert any("exit" in line for line in facts["programs"][0]["instructions"])
    assert {m["name"] for m in facts["maps"]} >= {"ring"}
    assert facts["seals"][0]["trusted"]
    assert facts["seals"][0]["chain"][0]["subject"].startswith("CN=signer")
    text = cli("inspect", "--insns", built).stdout
    assert "here     it can run" in text
    assert "call bpf_ringbuf_" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kernel": {"release": "6.18.0-other", "btf": bytes(32)}}, "built for kernel 6.18.0-other"),
        ({"kernel": {"machine": "riscv64"}}, "built for riscv64"),
        ({"kernel": {"boot": "00000000-0000-0000-0000-000000000000"}}, "another boot"),
    ],
)
def test_another_place_is_refused_with_words(cli: Cli, built: Path, changes: dict[str, dict], words: str) -> None:  # type: ignore[type-arg]
    file, _ = store.read(str(built))
    rewrite(built, kernel=msgspec.structs.replace(file.kernel, **changes["kernel"]))
    done = cli("run", built, status=1)
    assert words in done.stderr
    assert words in cli("inspect", built).stdout
    assert "21 words" not in done.stdout


def test_offsets_in_a_file_that_changed_are_refused(cli: Cli, tmp_path: Path, bpf_permitted: None) -> None:
    import shutil

    target = tmp_path / "program"
    shutil.copy("/bin/true", target)
    cli("build", "-o", tmp_path / "u.bpfseal", "-e", f"uprobe:{target}:0x{entry(target):x} {{ exit(); }}", "--unsafe")
    file, _ = store.read(str(tmp_path / "u.bpfseal"))
    assert [f.path for f in file.files] == [str(target)]
    place.demand(file)
    with open(target, "ab") as out:
        out.write(b"\0")
    assert f"built for another {target}" in cli("run", tmp_path / "u.bpfseal", status=1).stderr


def entry(path: Path) -> int:
    """Address of the first instruction; in a program that is linked as usual its offset too."""
    import struct

    return int(struct.unpack_from("<Q", path.read_bytes(), 24)[0])


def test_addresses_of_this_boot_are_good_for_this_boot(cli: Cli, tmp_path: Path, bpf_permitted: None) -> None:
    # Symbols are hidden on some machines; a comment counts too.
    done = cli("build", "-o", tmp_path / "k.bpfseal", "-e", "BEGIN { /* kaddr(x) */ exit(); }")
    assert "until reboot" in done.stderr
    file, _ = store.read(str(tmp_path / "k.bpfseal"))
    assert file.kernel.boot == place.boot_id()


def test_a_file_of_this_boot_is_not_sealed(cli: Cli, built: Path, pair: Pair) -> None:
    file, _ = store.read(str(built))
    rewrite(built, kernel=msgspec.structs.replace(file.kernel, boot=place.boot_id()))
    assert "one boot" in cli("seal", "--key", pair.key, "--cert", pair.cert, built, status=1).stderr


def test_an_object_is_sealed_in_one_step(cli: Cli, compiled: Callable[..., Path], pair: Pair, tmp_path: Path) -> None:
    made = compiled("maps")
    out = tmp_path / "maps.bpfseal"
    cli("seal", "--key", pair.key, "--cert", pair.cert, "-o", out, made)
    file, _ = store.read(str(out))
    assert file.kind == "object"
    assert not file.bound  # no type of any kernel's is in it
    assert cli("verify", "--cert", pair.cert, out).stdout.count(": good") == len(file.seals)
    assert "Attached 1 probe" in cli("run", "-c", "/bin/true", out).stderr


def test_a_file_for_a_kernel_that_is_not_here_needs_its_types(
    cli: Cli, built: Path, pair: Pair, tmp_path: Path
) -> None:
    file, _ = store.read(str(built))
    rewrite(built, kernel=KernelId(release="6.18.9", machine=file.kernel.machine, btf=bytes(32)))
    assert "another than the given" in cli("seal", "--key", pair.key, "--cert", pair.cert, built, status=1).stderr


def test_maps_that_exist_elsewhere_cannot_be_sealed(pair: Pair, tmp_path: Path) -> None:
    from bpfseal.runtime.ahead.seal import seal
    from bpfseal.signer.bundle import MapSpec, encode
    from bpfseal.signer.client import SignerError

    from .test_file import small, unsealed

    here = MapSpec(name="here", type=1, key_size=4, value_size=4, max_entries=1, id=7)
    file: SealedFile = msgspec.structs.replace(
        unsealed(), bundle=encode(msgspec.structs.replace(small(), maps=(here,)))
    )
    with pytest.raises(SignerError, match="exists on one machine only"):
        seal(file, key=str(pair.key), certificate=str(pair.cert), audit=str(tmp_path / "a" / "audit.jsonl"))


@pytest.mark.parametrize(
    "words", [("run", "/etc/hostname"), ("verify", "/nowhere"), ("inspect", "/bin/true"), ("build", "/nowhere")]
)
def test_wrong_files_end_in_one_line(cli: Cli, words: tuple[str, str]) -> None:
    done = cli(*words, status=1)
    assert done.stderr.startswith("ERROR: ")


def test_functions_of_programs_are_not_for_files(cli: Cli, tmp_path: Path, bpf_permitted: None) -> None:
    """They are named by a descriptor, and gone when their owner is."""
    with bpfseal.trace("begin { @a[1] = 1; } interval:s:1000 { for ($kv : @a) { @b = $kv.0; } }") as trace:
        names = [line for line in list_probes("fentry:bpf:*:p*") if line.rpartition(":")[2].startswith("p")]
        assert names
        done = cli("build", "-o", tmp_path / "f.bpfseal", "-e", f"{names[-1]} {{ @ = count(); }}", status=1)
        trace.stop()
    assert f"ERROR: {names[-1]} is a function of a BPF program" in done.stderr
    assert not (tmp_path / "f.bpfseal").exists()
