"""Policies: what a text means, where a mistake is, who gets what and why not."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from bpfseal.signer.bundle import SealRequest
from bpfseal.signer.check import Findings, check
from bpfseal.signer.helpers import CLASSES, MAP_TYPE_BY_NAME
from bpfseal.signer.identity import Identity
from bpfseal.signer.policy import SETTLE_NS, Policy, PolicyError, PolicyFile, decide, explain
from tests.signer_analysis.kit import RETURN, bundle, call, declare, movi, program

ROOT, ALICE = Identity(0, 0), Identity(1000, 1000, groups=(4, 27), cgroup_path="/user.slice/a.scope", exe="/usr/bin/x")
REQUEST = SealRequest(bundle=b"")
GOOD = """version = 1
[defaults]
map_types = "*"
lifetime = 30

[[rule]]
name = "staff"
uid = [1000, 1001]
probes = ["tracepoint:syscalls:*"]
classes = ["map", "basic"]
max_map_bytes = "1MiB"

[[rule]]
name = "all"
anyone = true
probes = "begin"
"""


def findings(*programs: object, source: str = "BEGIN {}") -> Findings:
    return check(bundle(*programs, source=source))  # type: ignore[arg-type]


def rules(text: str) -> Policy:
    return Policy.parse(text.encode(), "p.toml")


def test_first_rule_that_grants_everything_wins() -> None:
    decision = decide(rules(GOOD), ALICE, findings(), REQUEST)
    assert (decision.allowed, decision.rule, decision.lifetime) == (True, "staff", 30)
    assert decision.reasons == (
        "probe_1: target tracepoint:syscalls:sys_enter_openat is not enforceable after signing",
    )


def test_default_is_no() -> None:
    assert decide(rules("version = 1"), ROOT, findings(), REQUEST).reasons == ("no rule is for uid 0",)
    decision = decide(rules(GOOD), ROOT, findings(), REQUEST)
    assert not decision.allowed
    assert decision.rule == "all"
    assert "rule all: probe_1: probe tracepoint:syscalls:sys_enter_openat is not granted" in decision.reasons
    assert "rule all: probe_1: helper map_lookup_elem (map) is not granted" in decision.reasons


def test_every_reason_is_told_not_only_the_first() -> None:
    insns = movi(1, 9) + call("send_signal") + RETURN
    decision = decide(rules(GOOD), ALICE, findings(program(insns, declare(insns, "send_signal"))), REQUEST)
    assert [r for r in decision.reasons if r.startswith("rule staff")] == [
        "rule staff: probe_1: helper send_signal (signal) is not granted"
    ]
    longer = decide(rules(GOOD), ALICE, findings(), SealRequest(bundle=b"", lifetime=31))
    assert longer.reasons[0] == "rule staff: 31 seconds of life, 30 allowed"


@pytest.mark.parametrize(
    ("match", "who", "why"),
    [
        ("uid = 1000", ALICE, ""),
        ("uid = 1", ALICE, "is not for uid 1000"),
        ("gid = 27", ALICE, ""),
        ("gid = 1000", ALICE, ""),
        ("gid = 5", ALICE, "is for other groups"),
        ('user = "root"', ROOT, ""),
        ('group = "root"', ROOT, ""),
        ('cgroup = "/user.slice/*"', ALICE, ""),
        ('cgroup = "/system.slice/*"', ALICE, "is not for cgroup /user.slice/a.scope"),
        ('exe = ["/usr/bin/*", "/bin/*"]', ALICE, ""),
        ('exe = "/opt/*"', ALICE, "is not for executable /usr/bin/x"),
        ('exe = "/opt/*"', ROOT, "is not for executable unknown"),
        (f'exe_sha256 = "{"ab" * 32}"', replace(ALICE, exe_sha256="ab" * 32), ""),
        (f'exe_sha256 = "{"ab" * 32}"', ALICE, "another sha256"),
        (f'exe_verity = "sha256:{"cd" * 32}"', replace(ALICE, exe_verity="sha256:" + "cd" * 32), ""),
        (f'exe_verity = "{"cd" * 32}"', ALICE, "another fs-verity digest"),
        ("uid = 1000\ngid = 5", ALICE, "is for other groups"),
        ("anyone = true", Identity(65534, 65534), ""),
    ],
)
def test_identity(match: str, who: Identity, why: str) -> None:
    (rule,) = rules(f"[[rule]]\n{match}\n").rules
    assert why in rule.matches(who)
    assert bool(why) == bool(rule.matches(who))


MISTAKES = [
    ("version = 2\n", 1, "version is not 1"),
    ("\n\nrules = 3\n", 3, "rules is not a key of a policy"),
    ("[[rule]]\nuid = 0\nporbes = '*'\n", 3, "porbes is not a key of a rule"),
    ("[[rule]]\nuid = 0\n[[rule]]\nuid = 0\nclasses = ['map', 'reed']\n", 5, "'reed', which does not exist"),
    ("[[rule]]\nuid = 0\nhelpers = 'sys_bpf'\n", 3, "'sys_bpf', which does not exist"),
    ("[[rule]]\nuid = 0\nmap_types = ['hash', 'arena']\n", 3, "'arena', which does not exist"),
    ("[[rule]]\nuid = -1\n", 2, "uid is not a number"),
    ("[[rule]]\nuid = true\n", 2, "uid is not a number"),
    ("[[rule]]\nuid = []\n", 2, "uid is not a number"),
    ("[[rule]]\nuser = 'no-such-user-here'\n", 2, "user names the user 'no-such-user-here', which does not exist"),
    ("[[rule]]\ngroup = 'no-such-group-here'\n", 2, "which does not exist"),
    ("[[rule]]\nuid = 0\nprobes = [1]\n", 3, "probes is not a text"),
    ("[[rule]]\nuid = 0\nprobes = ''\n", 3, "probes is not a text"),
    ("[[rule]]\nuid = 0\nmax_map_bytes = '3 parsecs'\n", 3, "max_map_bytes is not a number"),
    ("[[rule]]\nuid = 0\nmax_programs = 4097\n", 3, "max_programs is not a number from 1 to 4096"),
    ("[[rule]]\nuid = 0\nlifetime = 0\n", 3, "lifetime is not a number"),
    ("[[rule]]\nuid = 0\nsleepable = 'yes'\n", 3, "sleepable is not true or false"),
    ("[[rule]]\nuid = 0\nexe_sha256 = 'abc'\n", 3, "not a sha256"),
    ("[[rule]]\nuid = 0\nname = 'two words'\n", 3, "name is not a short name"),
    ("[[rule]]\nname = 'x'\nuid = 0\n\n[[rule]]\nname = 'x'\nuid = 1\n", 6, "'x' is used twice"),
    ("# nobody\n[[rule]]\nprobes = '*'\n", 2, "names nobody"),
    ("[[rule]]\nuid = 0\nanyone = true\n", 3, "not both"),
    ("[defaults]\nuid = 0\n", 2, "uid cannot be a default"),
    ("[defaults]\nlifetyme = 0\n", 2, "lifetyme is not a key"),
    ("defaults = 3\n", 1, "defaults is not a table"),
    ("rule = 3\n", 1, "rule is not a table"),
    ("[rule]\nuid = 0\n", 1, "rule is not a table"),
    ("rule = [1]\n", 1, "is not a table"),
    ("[[rule]]\nuid = 0\nuid = 1\n", 3, "overwrite"),
    ("[[rule]]\nuid = \n", 2, "Invalid value"),
    ("x = '\x00'\n", 1, "Found invalid character"),
]


@pytest.mark.parametrize(("text", "line", "reason"), MISTAKES, ids=[reason for *_, reason in MISTAKES])
def test_mistakes_have_a_line(text: str, line: int, reason: str) -> None:
    with pytest.raises(PolicyError, match=f"^p.toml:{line}: ") as error:
        rules(text)
    assert reason in str(error.value)


@pytest.mark.parametrize("data", [b"\xff", b"a = [" * 5000, b"#" * (2 << 20)])
def test_what_is_no_toml_is_a_policy_error(data: bytes) -> None:
    with pytest.raises(PolicyError, match=r"^p.toml:\d+: "):
        Policy.parse(data, "p.toml")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=3))
def test_any_change_is_a_policy_or_a_policy_error(at: int, patch: bytes) -> None:
    data = GOOD.encode()
    try:
        Policy.parse(data[:at] + patch + data[at + 1 :])
    except PolicyError:
        pass


def test_deny_wins_over_grant() -> None:
    text = '[[rule]]\nuid=0\nclasses="map"\nmap_types="*"\nprobes="*"\ndeny_probes="tracepoint:syscalls:*"\n'
    decision = decide(rules(text), ROOT, findings(), REQUEST)
    assert decision.reasons == ("rule rule-1: probe_1: probe tracepoint:syscalls:sys_enter_openat is denied",)


def test_a_helper_by_name_without_its_class() -> None:
    text = '[[rule]]\nuid=0\nhelpers="map_lookup_elem"\nmap_types="*"\nprobes="*"\n'
    assert decide(rules(text), ROOT, findings(), REQUEST).allowed


def test_source_can_be_required() -> None:
    policy = rules('[[rule]]\nuid=0\nclasses="*"\nmap_types="*"\nprobes="*"\nrequire_source=true\n')
    assert decide(policy, ROOT, findings(), REQUEST).allowed
    assert decide(policy, ROOT, findings(source=""), REQUEST).reasons == ("rule rule-1: source text is required",)


def test_limits() -> None:
    base = '[[rule]]\nuid=0\nclasses="*"\nmap_types="*"\nprobes="*"\n'
    for limit, reason in (
        ("max_insns = 5", "11 instructions, 5 allowed"),
        ("max_maps = 2", "3 maps, 2 allowed"),
        ('max_map_bytes = "1KiB"', "bytes of maps, 1024 allowed"),
        ("max_targets = 1\nmax_programs = 1", "2 programs, 1 allowed"),
    ):
        two = (program(name="a"), program(name="b")) if "programs" in limit else ()
        decision = decide(rules(base + limit), ROOT, findings(*two), REQUEST)
        assert any(reason in r for r in decision.reasons)
    policy = rules(base + "max_insns = 5\n[[rule]]\nanyone = true\nmax_insns = 9")
    assert (policy.max_insns(ROOT), policy.max_insns(ALICE)) == (9, 9)
    assert rules(base).max_insns(ALICE) == 0


def test_explanation_names_lines() -> None:
    assert explain(rules(GOOD), ROOT, findings(), REQUEST) == [
        "line 6: rule staff is not for uid 0",
        "line 13: rule all: probe_1: helper map_lookup_elem (map) is not granted",
        "line 13: rule all: probe_1: probe tracepoint:syscalls:sys_enter_openat is not granted",
        "refused: no rule allows it",
    ]
    assert explain(rules(GOOD), ALICE, findings(), REQUEST) == ["line 6: rule staff allows it"]


def test_the_default_policy_lets_root_look_and_nobody_touch() -> None:
    import bpfseal.signer

    path = Path(bpfseal.signer.__file__).parent / "default-policy.toml"
    policy = Policy.parse(path.read_bytes(), str(path))
    assert decide(policy, ROOT, findings(), REQUEST).allowed
    assert not decide(policy, ALICE, findings(), REQUEST).allowed
    assert not policy.rules[0].classes & {"write-user", "override", "signal", "control", "kptr", "network"}


def test_the_private_policy() -> None:
    insns = movi(1, 9) + call("send_signal") + RETURN
    signal = findings(program(insns, declare(insns, "send_signal")))
    mine, unsafe = Policy.default_private(1000), Policy.default_private(1000, unsafe=True)
    assert decide(mine, ALICE, findings(), REQUEST).allowed
    assert not decide(mine, ROOT, findings(), REQUEST).allowed
    assert not decide(mine, ALICE, signal, REQUEST).allowed
    assert decide(unsafe, ALICE, signal, REQUEST).allowed
    assert mine.digest != unsafe.digest
    assert set(CLASSES) - mine.rules[0].classes == {"control", "write-user", "override", "signal"}
    assert set(CLASSES) - unsafe.rules[0].classes == {"control"}
    assert mine.rules[0].map_types == set(MAP_TYPE_BY_NAME)
    assert not mine.rules[0].kfuncs.match("bpf_set_dentry_xattr")
    assert mine.rules[0].kfuncs.match("bpf_copy_from_user_str")


# The file

ONE, TWO = '[[rule]]\nname="one"\nuid=0\n', '[[rule]]\nname="two"\nuid=0\n'


def write(path: Path, text: str) -> None:
    """As an editor does it: a new file in the place of the old."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o644)
    os.utime(new, (time.time() - 10, time.time() - 10))
    new.rename(path)


def name_of(file: PolicyFile) -> str:
    return file.current().rules[0].name


def test_a_changed_file_is_read_and_a_wrong_one_keeps_the_old(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    write(path, ONE)
    file = PolicyFile(str(path))
    assert name_of(file) == "one"
    assert file.current() is file.current()
    write(path, TWO)
    assert name_of(file) == "two"
    assert file.trouble is None
    write(path, TWO + "nonsense = 1\n")
    assert name_of(file) == "two"
    assert "policy.toml:4: nonsense is not a key" in str(file.trouble)
    assert name_of(file) == "two"
    path.unlink()
    assert name_of(file) == "two"
    assert "No such file" in str(file.trouble)
    write(path, ONE)
    assert name_of(file) == "one"
    assert file.trouble is None


def test_a_file_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(ONE)
    path.chmod(0o644)
    file = PolicyFile(str(path))
    assert name_of(file) == "one"
    path.write_text(TWO)
    assert name_of(file) == "one"
    os.utime(path, ns=(0, time.time_ns() - SETTLE_NS))
    assert name_of(file) == "two"
    path.write_text(ONE)
    os.utime(path, (time.time() + 3600, time.time() + 3600))  # the clock was set back
    assert name_of(file) == "one"


def test_truncation_at_every_byte_never_changes_what_is_in_force(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    write(path, TWO)
    file = PolicyFile(str(path))
    whole = '[[rule]]\nname="one"\nuid=[0]\nprobes=["*"]\nclasses=["map"]'
    for size in range(len(whole)):
        write(path, whole[:size])
        try:
            meant: Policy | None = Policy.parse(whole[:size].encode())
        except PolicyError:
            meant = None
        found = file.current()
        assert found.rules == meant.rules if meant else found.digest
        assert bool(file.trouble) == (meant is None)


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o602])
def test_a_file_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "policy.toml"
    write(path, ONE)
    path.chmod(mode)
    with pytest.raises(PolicyError, match="can be written by others"):
        PolicyFile(str(path)).current()


def test_a_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "policy.toml", ONE)
    tmp_path.chmod(0o777)
    with pytest.raises(PolicyError, match="its directory can be written by others"):
        PolicyFile(str(tmp_path / "policy.toml")).current()


def test_links_and_other_things_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "real.toml", ONE)
    (tmp_path / "link.toml").symlink_to("real.toml")
    os.mkfifo(tmp_path / "pipe.toml")
    for name, reason in (("link.toml", "symbolic link"), ("pipe.toml", "regular file"), ("none.toml", "No such file")):
        with pytest.raises(PolicyError, match=reason):
            PolicyFile(str(tmp_path / name)).current()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    write(path, ONE)
    os.chown(path, 1234, 0)
    with pytest.raises(PolicyError, match="belongs to uid 1234"):
        PolicyFile(str(path)).current()


def test_who_may_change_packets_may_read_them() -> None:
    text = "version = 1\n[[rule]]\nuid = 0\nprobes = '*'\nclasses = ['{name}']\n"
    (both,) = Policy.parse(text.format(name="network").encode()).rules
    assert both.classes == {"network", "read-packet"}
    (reads,) = Policy.parse(text.format(name="read-packet").encode()).rules
    assert reads.classes == {"read-packet"}
