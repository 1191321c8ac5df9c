"""The shared test kernels, for the tests of this directory."""

from __future__ import annotations

from tests.vm.pool import vm72, vm73, vm618

__all__ = ["vm72", "vm73", "vm618"]
