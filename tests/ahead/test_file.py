"""The file's format, and what a change of any part of a sealed file comes to."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import msgspec
import pytest

from bpfseal.errors import BpfsealError
from bpfseal.runtime.ahead import signature
from bpfseal.runtime.ahead.seal import seal
from bpfseal.runtime.ahead.verify import judge, read_pem
from bpfseal.signer import sealed_file
from bpfseal.signer.asm import Asm
from bpfseal.signer.bundle import BUNDLE_VERSION, UNDECLARED, Attach, Bundle, ProgramSpec, decode, encode
from bpfseal.signer.sealed_file import MAGIC, VERSION, KernelId, SealedFile, SealedFileError

from .conftest import Pair, make_pair


def small() -> Bundle:
    a = Asm()
    a.ret(0)
    program = ProgramSpec(
        name="small",
        type=17,
        insns=a.code(),
        declared=UNDECLARED,
        attach=(Attach(kind="test_run", probe="self:signal:SIGUSR1", phase="begin"),),
    )
    return Bundle(version=BUNDLE_VERSION, programs=(program,), maps=(), source="// small")


def unsealed() -> SealedFile:
    kernel = KernelId(release="6.18.0", machine="x86_64", btf=bytes(32))
    return SealedFile(
        version=VERSION, kind="script", made_by="a test", bundle=encode(small()), kernel=kernel, bound=False
    )


@pytest.fixture(scope="module")
def sealed(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> SealedFile:
    audit = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    return seal(unsealed(), key=str(pair.key), certificate=str(pair.cert), audit=str(audit))[0]


def test_what_is_written_is_read() -> None:
    file = unsealed()
    assert sealed_file.decode(sealed_file.encode(file)) == file


def test_both_abis_are_sealed_and_verified(sealed: SealedFile, pair: Pair, other: Pair) -> None:
    lines = judge(sealed, decode(sealed.bundle), read_pem(str(pair.cert)))
    assert {line["abi"] for line in lines} <= {1, 2}
    assert 2 in {line["abi"] for line in lines}
    assert all(not line["trouble"] and line["trusted"] for line in lines)
    lines = judge(sealed, decode(sealed.bundle), read_pem(str(other.cert)))
    assert all(not line["trouble"] and not line["trusted"] and "not the given" in line["distrust"] for line in lines)


def test_the_authority_of_a_signer_is_trusted_through_the_chain(tmp_path: Path) -> None:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    now = datetime.datetime.now(datetime.UTC)

    def certificate(name: str, key: ec.EllipticCurvePrivateKey, issuer: str, by: ec.EllipticCurvePrivateKey, ca: bool):  # type: ignore[no-untyped-def]
        builder = x509.CertificateBuilder().public_key(key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        builder = builder.issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
        builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
        return builder.add_extension(x509.BasicConstraints(ca, None), True).sign(by, hashes.SHA256())

    root, middle, leaf = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    top = certificate("root", root, "root", root, True)
    between = certificate("middle", middle, "root", root, True)
    own = certificate("leaf", leaf, "middle", middle, False)
    key = tmp_path / "leaf.key"
    key.touch(0o600)
    key.write_bytes(leaf.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    chain = tmp_path / "chain.pem"
    chain.write_bytes(own.public_bytes(Encoding.PEM) + between.public_bytes(Encoding.PEM))
    file, _ = seal(unsealed(), key=str(key), certificate=str(chain), audit=str(tmp_path / "a" / "audit.jsonl"))
    bundle = decode(file.bundle)
    assert judge(file, bundle, [top])[0]["trusted"]
    assert judge(file, bundle, [between])[0]["trusted"]
    stranger = certificate("root", middle, "root", middle, True)
    assert not judge(file, bundle, [stranger])[0]["trusted"]
    # A signer's certificate is no authority, whatever it issues.
    forged = certificate("evil", root, "leaf", leaf, False)
    bad = msgspec.structs.replace(file.seals[0], certificates=(forged.public_bytes(Encoding.DER),))
    assert not judge(msgspec.structs.replace(file, seals=(bad,)), bundle, [own])[0]["trusted"]


def test_a_certificate_of_another_key_is_refused(pair: Pair, other: Pair, tmp_path: Path) -> None:
    with pytest.raises(BpfsealError, match="did not start"):
        seal(unsealed(), key=str(pair.key), certificate=str(other.cert), audit=str(tmp_path / "a" / "audit.jsonl"))


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "open")
    pair.key.chmod(0o644)
    with pytest.raises(BpfsealError, match="did not start"):
        seal(unsealed(), key=str(pair.key), certificate=str(pair.cert), audit=str(tmp_path / "a" / "audit.jsonl"))


@pytest.mark.parametrize("what", ["kernel", "bound", "kind", "made_by", "attach"])
def test_what_is_beside_the_code_is_sealed_too(sealed: SealedFile, what: str) -> None:
    bundle = decode(sealed.bundle)
    changes = {
        "kernel": {"kernel": msgspec.structs.replace(sealed.kernel, release="6.18.1")},
        "bound": {"bound": True},
        "kind": {"kind": "object"},
        "made_by": {"made_by": "somebody"},
    }
    if what == "attach":
        elsewhere = (Attach(kind="test_run", probe="self:signal:SIGUSR2", phase="begin"),)
        program = msgspec.structs.replace(bundle.programs[0], attach=elsewhere)
        bundle = msgspec.structs.replace(bundle, programs=(program,))
        file = msgspec.structs.replace(sealed, bundle=encode(bundle))
    else:
        file = msgspec.structs.replace(sealed, **changes[what])
    for one in file.seals:
        with pytest.raises(signature.BadSeal, match="not what was sealed"):
            signature.check(file, bundle, one)


def test_every_flipped_bit_is_noticed(sealed: SealedFile, pair: Pair) -> None:
    """With the checksum as it is each flip is damage. With it made good again, what is still trusted has not changed in
    anything that counts: only in the note of when and by which rule it was signed."""
    trusted = read_pem(str(pair.cert))
    data = sealed_file.encode(sealed)
    head = len(MAGIC) + 32
    bundle = decode(sealed.bundle)
    harmless = 0
    chosen = random.Random(7).sample(range(8 * head, 8 * len(data)), 1200)
    for bit in chosen:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealedFileError, match="damaged"):
            sealed_file.decode(bytes(flipped))
        flipped[len(MAGIC) : head] = hashlib.sha256(flipped[head:]).digest()
        try:
            file = sealed_file.decode(bytes(flipped))
            bundle = decode(file.bundle)
        except BpfsealError:
            continue
        for before, line, one in zip(sealed.seals, judge(file, bundle, trusted), file.seals, strict=False):
            if line["trusted"]:
                assert msgspec.structs.replace(one, rule=before.rule, signed_at=before.signed_at) == before
                assert msgspec.structs.replace(file, seals=()) == msgspec.structs.replace(sealed, seals=())
                harmless += 1
    assert harmless  # the flips of one seal leave the other good


def test_hostile_bytes_are_refused_with_words(sealed: SealedFile) -> None:
    data = sealed_file.encode(sealed)
    body = data[len(MAGIC) + 32 :]

    def wrap(body: bytes) -> bytes:
        return MAGIC + hashlib.sha256(body).digest() + body

    fields = msgspec.msgpack.decode(body)
    cases = {
        "empty": b"",
        "magic only": MAGIC,
        "other version": MAGIC[:-1] + b"\x02" + data[8:],
        "cut": data[:-1],
        "long": data + b"\0",
        "trailing": wrap(body + b"\0"),
        "not msgpack": wrap(b"\xc1" * 64),
        "bad utf-8": wrap(msgspec.msgpack.encode(fields | {"made_by": "a"}).replace(b"\xa1a", b"\xa1\xff")),
        "unknown field": wrap(msgspec.msgpack.encode(fields | {"more": 1})),
        "missing field": wrap(msgspec.msgpack.encode({k: v for k, v in fields.items() if k != "bound"})),
        "another version": wrap(msgspec.msgpack.encode(fields | {"version": VERSION + 1})),
        "kind": wrap(msgspec.msgpack.encode(fields | {"kind": "other"})),
        "escape codes": wrap(msgspec.msgpack.encode(fields | {"made_by": "\x1b[2J"})),
        "bound to nothing": wrap(
            msgspec.msgpack.encode(fields | {"bound": True, "kernel": fields["kernel"] | {"btf": b""}})
        ),
        "relative file": wrap(msgspec.msgpack.encode(fields | {"files": [{"path": "etc/x", "sha256": bytes(32)}]})),
        "many seals": wrap(msgspec.msgpack.encode(fields | {"seals": fields["seals"][:1] * 17})),
        "long signature": wrap(
            msgspec.msgpack.encode(fields | {"seals": [fields["seals"][0] | {"signature": bytes(1 << 15)}]})
        ),
        "abi 3": wrap(msgspec.msgpack.encode(fields | {"seals": [fields["seals"][0] | {"abi": 3}]})),
        "huge": MAGIC + bytes(sealed_file.MAX_FILE_BYTES),
    }
    for name, bad in cases.items():
        try:
            sealed_file.decode(bad)
        except SealedFileError:
            continue
        pytest.fail(f"{name}: taken")


def test_random_changes_never_end_in_anything_but_words(sealed: SealedFile) -> None:
    """Bytes of the body changed, cut, doubled, with a checksum that is right."""
    random_ = random.Random(11)
    body = sealed_file.encode(sealed)[len(MAGIC) + 32 :]
    for _ in range(3000):
        mutated = bytearray(body)
        for _ in range(random_.randrange(1, 6)):
            at = random_.randrange(len(mutated))
            if random_.random() < 0.6:
                mutated[at] = random_.randrange(256)
            elif random_.random() < 0.5:
                del mutated[at : at + random_.randrange(1, 40)]
            else:
                mutated[at:at] = mutated[at : at + random_.randrange(1, 40)]
        raw = bytes(mutated)
        try:
            file = sealed_file.decode(MAGIC + hashlib.sha256(raw).digest() + raw)
            bundle = decode(file.bundle)
            judge(file, bundle, [])
        except BpfsealError:
            continue


def test_signatures_that_kernels_would_take_but_that_we_did_not_write(sealed: SealedFile) -> None:
    """The kernel lets bits of the PKCS#7 differ; a verifier that does not would be the only one to notice."""
    bundle, one = decode(sealed.bundle), sealed.seals[0]
    for at in range(8 * 24):
        flipped = bytearray(one.signature)
        flipped[at // 8] ^= 1 << at % 8
        changed = msgspec.structs.replace(one, signature=bytes(flipped))
        with pytest.raises(signature.BadSeal):
            signature.check(sealed, bundle, changed)


def test_the_ordinary_helper_seals_no_files(bpf_permitted: None, tmp_path: Path) -> None:
    from bpfseal.signer.client import SignerError, start_private

    file = unsealed()
    with (
        start_private(audit=str(tmp_path / "audit.jsonl")) as helper,
        pytest.raises(SignerError, match="not for files"),
    ):
        helper.seal_file(file.bundle, sealed_file.header(file))
