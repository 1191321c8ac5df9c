"""`bpfseal signer …`: run the system's helper, ask it, look at its policy and its audit log."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from bpfseal.errors import BpfsealError, UsageError
from bpfseal.signer.client import SOCKET, SignerClient, connect, default_audit_path

POLICY = "/etc/bpfseal/policy.toml"
AUDIT = "/var/log/bpfseal/audit.jsonl"
# Set by the command line of the tracer, which may use the compiler: source text to canonical bundle bytes.
Compile = Callable[[str], bytes]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(message, hint=f"{self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="bpfseal signer", description="The trusted signing helper.")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True, parser_class=_Parser)

    run = verbs.add_parser("run", help="run the system's helper in the foreground")
    run.add_argument("--socket", default=SOCKET)
    run.add_argument("--policy", default=POLICY)
    run.add_argument("--audit", default=AUDIT, metavar="FILE|DIRECTORY")
    run.add_argument("--anchor", default="", metavar="FILE", help="append the log's head here at every checkpoint")
    run.add_argument("--root", default="", metavar="PEM|pkcs11:URI", help="root key (default: a new one, kept nowhere)")
    run.add_argument("--token-dir", action="append", default=[], metavar="DIR", help="what the token's library reads")
    run.add_argument("--key-life", type=int, default=600, metavar="SECONDS", help="life of a signing key")
    run.add_argument("--user", default="", help="account to run as when started by root (default: bpfseal)")
    run.add_argument("--executables", action="store_true", help="look at peers' executables, for rules that name them")
    run.add_argument("--admin", type=int, action="append", default=[], metavar="UID", help="may rotate and revoke")

    for verb, text in (
        ("status", "state of the helper"),
        ("cert", "print its certificates (PEM)"),
        ("keys", "list its live keys"),
        ("rotate", "new key in, old ones out: what they signed no longer loads"),
        ("revoke", "all keys out, no more signing until the next rotate"),
    ):
        sub = verbs.add_parser(verb, help=text)
        sub.add_argument("--socket", help=f"default {SOCKET}")
        sub.add_argument("--private", action="store_true", help="start a private helper and ask that")

    check = verbs.add_parser("check-policy", help="check a policy file for mistakes")
    check.add_argument("file", nargs="?", default=POLICY)

    policy = verbs.add_parser("policy", help="explain a decision").add_subparsers(
        dest="action", metavar="COMMAND", required=True, parser_class=_Parser
    )
    explain = policy.add_parser("check", help="would this be signed, and if not why")
    explain.add_argument("bundle", nargs="?", help="script or bundle file")
    explain.add_argument("-e", dest="program", help="program text")
    explain.add_argument("--as", dest="user", help="user name or uid (default: yourself)")
    explain.add_argument("--policy", help="policy file (default: ask the helper)")
    explain.add_argument("--socket", help=f"default {SOCKET}")

    audit = verbs.add_parser("audit", help="audit log").add_subparsers(
        dest="action", metavar="COMMAND", required=True, parser_class=_Parser
    )
    for action, text in (
        ("verify", "check the chain, its checkpoints and anchors"),
        ("show", "print records, one line each"),
        ("export", "print records as JSON lines, verified first"),
    ):
        sub = audit.add_parser(action, help=text)
        sub.add_argument("file", nargs="?", help="log or its directory (default: the system's, else your own)")
        sub.add_argument("--anchor", action="append", default=[], metavar="SEQUENCE:HASH|FILE", help="known head")
        sub.add_argument("--root", metavar="PEM", help="certificate or public key that signs the checkpoints")
        if action == "show":
            sub.add_argument("-n", type=int, default=0, metavar="N", help="the last N records only")
    return parser


def main(arguments: Sequence[str], compile_source: Compile | None = None) -> int:
    """Exit status of `bpfseal signer ARGUMENTS`. Raises BpfsealError."""
    options = _parser().parse_args(list(arguments))
    if options.verb == "run":
        return _run(options)
    if options.verb == "check-policy":
        return _check_policy(options)
    if options.verb == "policy":
        return _explain(options, compile_source)
    if options.verb == "audit":
        from bpfseal.signer import audit_cli

        return audit_cli.main(options, _audit_path(options.file))
    with _client(options) as client:
        return {"status": _status, "cert": _cert, "keys": _keys, "rotate": _rotate, "revoke": _revoke}[options.verb](
            client
        )


def _client(options: argparse.Namespace) -> SignerClient:
    if options.private:
        return connect(policy="")
    return connect(path=options.socket or os.environ.get("BPFSEAL_SOCKET") or SOCKET)


def _run(options: argparse.Namespace) -> int:
    """Start over in isolated mode: no environment, no user or site directories, fixed import folders."""
    from bpfseal.signer.client import import_folders

    if not 10 <= options.key_life <= 86400:
        raise UsageError("--key-life is between 10 s and a day")
    audit = os.path.abspath(options.audit)
    if os.path.isdir(audit) or not audit.endswith(".jsonl"):
        audit = os.path.join(audit, "audit.jsonl")
    settings = {
        "socket": os.path.abspath(options.socket),
        "policy": os.path.abspath(options.policy),
        "audit": audit,
        "anchor": os.path.abspath(options.anchor) if options.anchor else "",
        "root": options.root
        if options.root.startswith("pkcs11:") or not options.root
        else os.path.abspath(options.root),
        "life": str(options.key_life),
        "user": options.user,
        "executables": str(int(options.executables)),
        "token_dirs": "\n".join(map(os.path.abspath, options.token_dir)),
        "admins": ",".join(map(str, options.admin)),
    }
    keep = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "SOFTHSM2_CONF")
    environment = {name: os.environ[name] for name in keep if name in os.environ}
    code = (
        "import gc, sys; gc.disable(); sys.path += sys.argv[1].split(chr(10)); "
        "from bpfseal.signer.start import main; main(sys.argv[2:])"
    )
    command = [sys.executable, "-I", "-S", "-c", code, "\n".join(import_folders())]
    sys.stdout.flush()
    os.execve(sys.executable, [*command, *(f"{key}={value}" for key, value in settings.items())], environment)


def _print(pairs: Sequence[tuple[str, object]]) -> None:
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        print(f"{name:<{width}}  {value}")


def _status(client: SignerClient) -> int:
    state = client.status()
    signing = f"ABI v{state.abi}, keyring {state.keyring}" if state.abi else f"not verified by this kernel: {state.why}"
    _print(
        [
            ("helper", f"{state.mode}, pid {state.pid}, up {state.uptime} s"),
            ("signatures", signing),
            ("key", "revoked" if state.revoked else f"{state.algorithm}, {state.certificate.hex()[:16]}, "
             f"{state.leaf_left} of {state.leaf_seconds} s left, root {state.root}"),
            ("yours", f"{state.sealed} sealed, {state.refused} refused"),
            ("memory", f"{state.rss_kib} KiB resident, {state.locked_kib} KiB locked"),
            ("confined", ", ".join(state.hardening)),
            *([("policy", state.policy)] if state.policy else []),
            *([("policy", state.policy_trouble)] if state.policy_trouble else []),
            *([("audit log", state.audit), ("anchor", f"{state.head}:{state.head_hash}")] if state.audit else []),
            *([("everybody", ", ".join(f"{count} {name}" for name, count in state.totals))] if state.totals else []),
        ]
    )  # fmt: skip
    return 0


def _cert(client: SignerClient) -> int:
    import base64
    import textwrap

    reply = client.certificate()
    for title, der in (("leaf", reply.leaf), ("root", reply.root)):
        body = "\n".join(textwrap.wrap(base64.b64encode(der).decode(), 64))
        print(f"# {title}\n-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----")
    return 0


def _keys(client: SignerClient) -> int:
    reply = client.keys()
    print(f"keyring {reply.keyring}" if reply.keyring else "no keyring")
    for key in reply.keys:
        use = "signing" if key.signing else "only verifying what it signed"
        print(f"{key.certificate.hex()}  key {key.serial}  {key.seconds_left} s left  {use}")
    return 0


def _rotate(client: SignerClient) -> int:
    print(f"new key {client.rotate().certificate.hex()}")
    return 0


def _revoke(client: SignerClient) -> int:
    client.revoke()
    print("all keys are revoked; `bpfseal signer rotate` starts again")
    return 0


def _check_policy(options: argparse.Namespace) -> int:
    from bpfseal.signer.policy import PolicyFile

    PolicyFile(options.file).current()
    print(f"{options.file}: good")
    return 0


def _user(text: str) -> tuple[int, int, tuple[int, ...]]:
    import pwd

    try:
        entry = pwd.getpwuid(int(text)) if text.isdigit() else pwd.getpwnam(text)
    except KeyError:
        if text.isdigit():
            return int(text), int(text), ()
        raise BpfsealError(f"there is no user {text}") from None
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return entry.pw_uid, entry.pw_gid, tuple(sorted(groups))


def _explain(options: argparse.Namespace, compile_source: Compile | None) -> int:
    data = _bundle_bytes(options, compile_source)
    if options.policy:
        return _explain_file(options, data)
    path = options.socket or os.environ.get("BPFSEAL_SOCKET") or SOCKET
    with connect(path=path if options.socket or os.path.exists(path) else None) as client:
        verdict = client.check(data, user=_user(options.user) if options.user else None)
    print(f"{'allowed' if verdict.allowed else 'refused'} by {verdict.rule or 'no rule'}")
    for reason in verdict.reasons:
        print(f"  {reason}")
    return 0 if verdict.allowed else 1


def _explain_file(options: argparse.Namespace, data: bytes) -> int:
    """What each rule of a policy file makes of it."""
    from bpfseal.signer import bundle, check, policy
    from bpfseal.signer.identity import Identity

    source = policy.PolicyFile(options.policy).current()
    who = Identity(*_user(options.user or str(os.getuid())))
    findings, request = check.check(bundle.decode(data)), bundle.SealRequest(bundle=data)
    for line in policy.explain(source, who, findings, request):
        print(line)
    return 0 if policy.decide(source, who, findings, request).allowed else 1


def _bundle_bytes(options: argparse.Namespace, compile_source: Compile | None) -> bytes:
    if (options.bundle is None) == (options.program is None):
        raise UsageError("give a file or -e PROGRAM")
    if options.program is None:
        try:
            with open(options.bundle, "rb") as file:
                data = file.read()
        except OSError as error:
            raise BpfsealError(f"cannot read {options.bundle}: {error.strerror}") from None
        if data[:1] and data[0] >= 0x80:  # a msgpack map, which no script begins with
            return data
        options.program = data.decode(errors="replace")
    if compile_source is None:
        raise BpfsealError("source text needs the compiler", hint="use `bpfseal signer policy check`")
    return compile_source(options.program)


def _audit_path(named: str | None) -> str:
    if named:
        return named
    if os.access(AUDIT, os.R_OK):
        return AUDIT
    return default_audit_path()
