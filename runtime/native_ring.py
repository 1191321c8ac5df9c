"""LLVM IR that reads a ring buffer of the kernel's: what the consumers in machine code have in common.

`runtime.native_walk` writes lines from records, `runtime.records.bulk` copies them. Why records are looked at in this
way (busy and discard bits, padding) and what a ring looks like: `runtime.ring`.
"""

from __future__ import annotations

from collections.abc import Sequence


def members(names: Sequence[str]) -> str:
    """The words of `%state`, in their order: `%NAME_at` is the address of each and `%NAME` what was in it, a pointer
    for names with a "*" behind them."""
    lines = []
    for number, name in enumerate(names):
        bare = name.removesuffix("*")
        type = "ptr" if name.endswith("*") else "i64"
        lines.append(f"  %{bare}_at = getelementptr i64, ptr %state, i64 {number}")
        lines.append(f"  %{bare} = load {type}, ptr %{bare}_at")
    return "\n".join(lines)


def record(*, kept: str, skipped: str, end: str) -> str:
    """Looks at the record at `%here`: on to `kept` with `%header`, `%padded` (its bytes with header and padding) and
    `%behind` (where the next one begins), to `skipped` if its producer took it back, to `end` if there is none yet."""
    return f"""\
  %produced = load atomic i64, ptr %producer acquire, align 8
  %there = icmp ult i64 %here, %produced
  br i1 %there, label %head, label %{end}
head:
  %at = and i64 %here, %mask
  %header = getelementptr i8, ptr %data, i64 %at
  %word = load atomic i32, ptr %header acquire, align 8
  %busy = icmp slt i32 %word, 0
  br i1 %busy, label %{end}, label %whole
whole:
  %bits = and i32 %word, 1073741823
  %length = zext i32 %bits to i64
  %longer = add i64 %length, 15
  %padded = and i64 %longer, -8
  %behind = add i64 %here, %padded
  %flag = and i32 %word, 1073741824
  %discarded = icmp ne i32 %flag, 0
  br i1 %discarded, label %{skipped}, label %{kept}"""


def give_back(*, of: str, then: str) -> str:
    """The end of the block `of`: tells the kernel that everything up to `%behind` has been read, if that is `%step`
    bytes more than the `%released` it knows of, and begins the block `then` with `%given`, what it knows now."""
    return f"""\
  %held = sub i64 %behind, %released
  %much = icmp uge i64 %held, %step
  br i1 %much, label %give, label %{then}
give:
  store atomic i64 %behind, ptr %consumer release, align 8
  br label %{then}
{then}:
  %given = phi i64 [ %released, %{of} ], [ %behind, %give ]"""
