"""The test program, and whether this kernel has deferred work at all."""

from __future__ import annotations

import pytest

from tests.compiler.harness import environment, why_not
from tests.defer import kit


@pytest.fixture(scope="session")
def pageout(tmp_path_factory: pytest.TempPathFactory) -> str:
    program = kit.build(tmp_path_factory.mktemp("pageout"))
    if not program:
        pytest.skip("no C compiler")
    return program


@pytest.fixture(scope="session")
def task_work() -> None:
    if reason := why_not():
        pytest.skip(reason)
    types = environment().world.types
    names = [f"bpf_task_work_schedule_{mode}{suffix}" for mode in ("resume", "signal") for suffix in ("", "_impl")]
    if types is None or not any(types.kfunc(name) for name in names):
        pytest.skip("the kernel has no deferred work (Linux 6.18)")
