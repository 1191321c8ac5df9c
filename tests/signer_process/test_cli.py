"""`bpfseal signer …` as people use it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bpfseal.errors import BpfsealError, UsageError
from bpfseal.signer import cli

from .conftest import POLICY, running, small_bundle


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bpfseal.signer", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=dict(os.environ) | (env or {})
    )


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    path = tmp_path / "bundle"
    path.write_bytes(small_bundle())
    return str(path)


def test_the_life_of_an_administrator(bundle: str) -> None:
    with running() as helper:
        at = ("--socket", helper.socket)
        status = run("status", *at)
        assert status.returncode == 0, status.stderr
        for word in ("system, pid", "ECDSA P-256", "no new privileges", "anchor", "resident"):
            assert word in status.stdout
        anchor = re.search(r"anchor +(\d+:[0-9a-f]{64})", status.stdout)
        assert anchor
        certificates = run("cert", *at).stdout
        assert certificates.count("-----BEGIN CERTIFICATE-----") == 2
        first = run("keys", *at).stdout
        assert first.count("signing") == 1
        assert "new key" in run("rotate", *at).stdout
        assert run("keys", *at).stdout != first
        allowed = run("policy", "check", bundle, *at)
        assert (allowed.returncode, allowed.stdout.splitlines()[0]) == (0, "allowed by root")
        refused = run("policy", "check", bundle, "--as", "4711", *at)
        assert refused.returncode == 1
        assert "no rule is for uid 4711" in refused.stdout
        assert "revoked" in run("revoke", *at).stdout
        assert "revoked" in run("status", *at).stdout
        verified = run("audit", "verify", str(helper.audit.parent), "--anchor", anchor[1])
        assert verified.returncode == 0, verified.stdout
        assert "good" in verified.stdout
        shown = run("audit", "show", str(helper.audit)).stdout
        assert [line.split()[3] for line in shown.splitlines()] == ["start", "rotate", "revoke"]
        assert len(run("audit", "show", "-n", "1", str(helper.audit)).stdout.splitlines()) == 1
        exported = run("audit", "export", str(helper.audit))
        assert exported.stdout.encode() == helper.audit.read_bytes()
        helper.audit.write_bytes(helper.audit.read_bytes().replace(b'"event":"rotate"', b'"event":"rotated"'))
        bad = run("audit", "verify", str(helper.audit))
        assert bad.returncode == 1
        assert "edited" in bad.stdout
        assert run("audit", "export", str(helper.audit)).stdout == ""


def test_an_export_can_be_verified_again(tmp_path: Path) -> None:
    with running() as helper:
        with helper.client() as client:
            client.seal(small_bundle())
        copy = tmp_path / "copy.jsonl"
        copy.write_text(run("audit", "export", str(helper.audit)).stdout)
        assert run("audit", "verify", str(copy)).returncode == 0


def test_private(tmp_path: Path) -> None:
    shown = run("status", "--private", env={"BPFSEAL_AUDIT": str(tmp_path / "a" / "audit.jsonl")})
    assert shown.returncode == 0, shown.stderr
    assert "private, pid" in shown.stdout


def test_policies(tmp_path: Path, bundle: str) -> None:
    good = tmp_path / "policy.toml"
    good.write_text(POLICY)
    assert run("check-policy", str(good)).stdout == f"{good}: good\n"
    explained = run("policy", "check", bundle, "--policy", str(good), "--as", "0")
    assert explained.returncode == 0, explained.stderr
    assert "rule root allows it" in explained.stdout
    assert run("policy", "check", bundle, "--policy", str(good), "--as", "12").returncode == 1
    good.write_text(POLICY.replace('name = "root"', 'name = "root"\nproves = 3'))
    bad = run("check-policy", str(good))
    assert bad.returncode != 0
    assert "policy.toml:6: proves" in bad.stderr
    assert "Traceback" not in bad.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "required"),
        (("fly",), "invalid choice"),
        (("audit",), "required"),
        (("run", "--key-life", "1"), "between 10 s"),
        (("run", "--key-life", "soon"), "invalid int"),
        (("policy", "check"), "give a file or -e"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        cli.main(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("status", "--socket", "/nowhere/s"), "no signing helper answers"),
        (("check-policy", "/nowhere/policy.toml"), "No such file"),
        (("audit", "verify", "/nowhere/audit.jsonl"), "No such file"),
        (("audit", "verify", "/dev/null", "--anchor", "x"), "not an anchor"),
        (("audit", "verify", "/dev/null", "--root", "/nowhere"), "No such file"),
        (("policy", "check", "/nowhere/bundle"), "cannot read"),
        (("policy", "check", "-e", "BEGIN {}"), "needs the compiler"),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(BpfsealError, match=message):
        cli.main(arguments)
    result = run(*arguments)
    assert result.returncode in (1, 2)
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("bpfseal: error: ")
