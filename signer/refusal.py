"""`Refusal`: why a bundle is not signed, in parts that programs can read and in one line for people."""

from __future__ import annotations

from bpfseal.errors import BpfsealError


class Refusal(BpfsealError):
    """A bundle that will not be sealed.

    rule       short stable name of the rule that was broken, e.g. "unreachable", "helper", "map-type"
    reason     what is wrong, one line without the place
    program    name of the program (or map) it is in, empty for the bundle itself
    insn       index of the instruction slot, None where it is not about one
    attribute  the value at fault, e.g. a helper's name
    """

    def __init__(
        self, rule: str, reason: str, *, program: str = "", insn: int | None = None, attribute: str = ""
    ) -> None:
        place = f"{program}: " if program else ""
        if insn is not None:
            place += f"instruction {insn}: "
        super().__init__(f"{place}{reason} [{rule}]")
        self.rule = rule
        self.reason = reason
        self.program = program
        self.insn = insn
        self.attribute = attribute

    def at(self, program: str, insn: int | None = None) -> Refusal:
        """The same refusal with its place filled in."""
        where = self.insn if insn is None else insn
        return Refusal(self.rule, self.reason, program=program, insn=where, attribute=self.attribute)
