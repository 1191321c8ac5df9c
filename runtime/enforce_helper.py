"""What turning enforcement on needs around it: a system helper to trust, a harmless program to prove it with."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from bpfseal.errors import BpfsealError
from bpfseal.signer.asm import Asm
from bpfseal.signer.bundle import BUNDLE_VERSION, Attach, Attributes, Bundle, ProgramSpec

LOG = "/var/log/bpfseal/helper.log"
POLICY = "/etc/bpfseal/policy.toml"
START_SECONDS = 120.0


def harmless() -> Bundle:
    """A program of two instructions that is attached to nothing."""
    a = Asm()
    a.ret(0)
    code = a.code()
    return Bundle(
        version=BUNDLE_VERSION,
        programs=(
            ProgramSpec(
                name="bpfseal_proof",
                type=17,  # BPF_PROG_TYPE_RAW_TRACEPOINT
                insns=code,
                declared=Attributes(insns=2),
                attach=(Attach(kind="test_run", probe="self:signal:SIGUSR1", phase="begin"),),
            ),
        ),
        maps=(),
        source="// proof that a sealed program loads: returns 0, attached nowhere",
    )


def start_helper(socket: str) -> int:
    """Start `bpfseal signer run` in the background, in a session of its own, and wait until it answers; its pid.

    With the machine's policy, or where there is none the built-in one for root. Raises BpfsealError.
    """
    from bpfseal.signer.client import SignerError, connect

    policy = POLICY
    if not os.path.exists(policy):
        from importlib.resources import files

        policy = str(files("bpfseal.signer") / "default-policy.toml")
    for folder in (os.path.dirname(socket), os.path.dirname(LOG)):
        os.makedirs(folder, mode=0o755, exist_ok=True)
    command = [sys.executable, "-m", "bpfseal", "signer", "run", "--socket", socket, "--policy", policy]
    with open(LOG, "ab") as log:
        helper = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True
        )
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        try:  # a socket file alone says nothing: an earlier helper may have left it
            connect(path=socket).close()
        except SignerError:
            if helper.poll() is not None:
                break
            time.sleep(0.05)
            continue
        print(f"signing helper started, pid {helper.pid}, log in {LOG}", flush=True)
        return helper.pid
    ended = helper.poll() is not None
    helper.kill()
    helper.wait()
    with open(LOG, errors="replace") as log_text:
        last = (log_text.read().strip().splitlines() or ["it said nothing"])[-1]
    reason = last if ended else f"no answer in {START_SECONDS:.0f} s"
    raise BpfsealError(f"the signing helper did not start: {reason}", hint=f"see {LOG}")
