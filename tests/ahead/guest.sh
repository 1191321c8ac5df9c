#!/bin/sh
# Inside a test kernel that enforces signatures; $1 a folder with signer.key, signer.pem, maps.bpf.o, foreign.bpfseal.
# Marked sections, judged outside.
cd "$1" || exit 1
export BPFSEAL_AUDIT="$1/audit/audit.jsonl"
SCRIPT='BEGIN { printf("began\n"); } tracepoint:syscalls:sys_enter_openat { @opens = count(); } interval:s:1 { exit(); }'

echo "=== build"
bpfseal build -o t.bpfseal -e "$SCRIPT" 2>&1
bpfseal seal --key signer.key --cert signer.pem t.bpfseal 2>&1
bpfseal seal --key signer.key --cert signer.pem -o maps.bpfseal maps.bpf.o 2>&1
echo "=== untrusted"
bpfseal run -v t.bpfseal 2>&1
echo "=== allow"
bpfseal enforce allow --cert signer.pem 2>&1
kill $(bpfseal enforce status | sed -n 's/.* of helper //p')
sleep 1
echo "=== status"
bpfseal enforce status 2>&1
echo "=== run"
bpfseal run -v --signing=require t.bpfseal 2>&1
echo "=== object"
bpfseal run -v --signing=require --pin /sys/fs/bpf/maps maps.bpfseal 2>&1
rm -r /sys/fs/bpf/maps
echo "=== text"
bpfseal -e "$SCRIPT" 2>&1
echo "=== foreign"
bpfseal run foreign.bpfseal 2>&1
echo "=== changed"
python3 - <<'PYTHON' 2>&1
import msgspec
from bpfseal.errors import BpfsealError
from bpfseal.runtime.ahead import run, store
from bpfseal.runtime.load import refusal_of

file, bundle = store.read("t.bpfseal")
sealed, why = run.presealed(file, bundle)
assert sealed is not None, why
print("as it is:", refusal_of(sealed))
accepted = 0
for what in ("loader", "metadata", "signature"):
    data = getattr(sealed, what)
    refused = ran = 0
    for at in range(0, 8 * len(data), max(1, len(data) // 25)):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        changed = msgspec.structs.replace(sealed, **{what: bytes(flipped)})
        if refusal_of(changed) is None:
            ran += 1
        else:
            refused += 1
    print(what, "abi", sealed.abi, "refused", refused, "taken", ran)
PYTHON
echo "=== by session"
python3 - <<'PYTHON' 2>&1
import os
from pathlib import Path

import msgspec
from bpfseal.runtime.ahead import run, store, trust
from bpfseal.runtime.load import refusal_of
from bpfseal.signer.keyring import add_key, keyctl
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

file, bundle = store.read("t.bpfseal")
sealed, why = run.presealed(file, bundle)
assert sealed is not None, why
named = msgspec.structs.replace(sealed, keyring=-3)


def tried(what: str) -> None:
    refused = refusal_of(named)
    print(f"{what}:", "taken" if refused is None else os.strerror(refused.code))


(name,) = trust.rings()
keyctl(1, b"another\0")
tried("an empty session")
certificate = x509.load_pem_x509_certificate(Path("signer.pem").read_bytes()).public_bytes(Encoding.DER)
add_key("asymmetric", "of its own", certificate, -3)
tried("a session with the same certificate")
keyctl(1, name.encode() + b"\0")
tried("the ring as session")
PYTHON
echo "=== disallow"
bpfseal enforce disallow --cert signer.pem 2>&1
bpfseal run t.bpfseal 2>&1
echo "=== end"
