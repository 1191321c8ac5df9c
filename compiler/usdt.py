"""Arguments of USDT probes, from the words that `runtime.probes.usdt` gives for where they are."""

from __future__ import annotations

from bpfseal.compiler.gen import Gen
from bpfseal.compiler.ir import I64, Value, const
from bpfseal.errors import BpfsealError


def usdt_argument(g: Gen, number: int) -> Value:
    """Argument `number` as an i64, extended by its sign. Raises BpfsealError for one that the probe does not have."""
    assert g.probe is not None
    words = g.probe.args.extra.get(f"arg{number}")
    if not isinstance(words, str):
        raise BpfsealError(
            f"{g.probe.points[0].name} has no argument arg{number} that can be read",
            hint="bpfseal -lv shows the arguments of a probe",
        )
    kind, where, *numbers = words.split()
    size, signed = int(kind[1:]), kind[0] == "s"
    operands = [int(n) for n in numbers]
    match where:
        case "const":
            number = operands[0] & ((1 << 8 * size) - 1)
            return const(number - (1 << 8 * size) if signed and number >> (8 * size - 1) else number)
        case "reg":
            value = _register(g, operands[0])
            if len(operands) > 1:
                value = g.fn.binary("lshr", value, const(operands[1]))
        case "mem":
            address = g.fn.binary("add", _register(g, operands[0]), const(operands[1]))
            if len(operands) > 2:
                index = g.fn.binary("mul", _register(g, operands[2]), const(operands[3]))
                address = g.fn.binary("add", address, index)
            target = g.buffer(8)
            g.fn.store(const(0), target, 8)
            g.helper("probe_read_user", target, const(size), address)
            value = g.fn.load(I64, target, 8)
        case _:
            raise BpfsealError(f"argument arg{number} of {g.probe.points[0].name} is at an unknown place: {words}")
    if size == 8:
        return value
    return g.fn.integer(g.fn.integer(value, f"i{8 * size}"), I64, signed)


def _register(g: Gen, offset: int) -> Value:
    from bpfseal.compiler.args import register

    return register(g, offset)
