"""Sizes that both sides of the border have to agree on: what is within them here is taken there.

They bound the work that one message can cause; what an administrator wants to allow is policy. All are generous: a
script with a thousand attach points of its own programs passes.
"""

from __future__ import annotations

MAX_BUNDLE_BYTES = 8 << 20
MAX_PROGRAMS = 4096  # of one bundle
MAX_MAPS = 256  # of one bundle; one program may use 64 of them (MAX_USED_MAPS of the verifier)
MAX_SOURCE_BYTES = 1 << 20  # of a script's text
MAX_READER_BYTES = 1 << 20  # of the description of records, which only the client reads
# The kernel takes keys up to the largest allocation (kernel/bpf/hashtab.c); two strings of default length make 2 KiB.
MAX_KEY_BYTES = 1 << 16
MAX_VALUE_BYTES = 1 << 30
