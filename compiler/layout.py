"""What the client needs to read a loaded Bundle: shapes of values, maps, events. Travels in `Bundle.reader`.

Independent of the language package, so that a cached script runs without parsing anything. The helper never looks
inside.
"""

from __future__ import annotations

import msgspec

from bpfseal.errors import BpfsealError

CUT = ".."


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Base of the reader's types."""


class Shape(Record, frozen=True):
    """How bytes become a value.

    kind    int bool enum str buf ptr array record tuple kstack ustack ksym usym inet mac timestamp cgroup_path none
            and for maps the aggregates count sum min max avg stats hist lhist tseries
    size    bytes in memory
    signed  of integers and of what is aggregated
    name    of an enum or record; "username" of an int that is a user id to be shown as the user's name
    element, count   arrays
    members  records and tuples; a language record (x=1) is a tuple whose members have names
    params   hist (bits,), lhist (min, max, step), tseries (interval_ns, buckets, kind), stacks (mode, depth),
             timestamp (clock), str (what is shown behind a string that fills its place without a NUL: it was cut;
             CUT when there are none)
    """

    kind: str
    size: int
    signed: bool = False
    name: str = ""
    element: Shape | None = None
    count: int = 0
    members: tuple[Member, ...] = ()
    params: tuple[int | str, ...] = ()


class Member(Record, frozen=True):
    """Part of a record or tuple. Bitfields: value = (read(shape at offset) >> bit_offset) & ((1 << bits) - 1)."""

    name: str
    offset: int
    shape: Shape
    bits: int = 0
    bit_offset: int = 0


class MapLayout(Record, frozen=True):
    """One map of the script. `index` into Bundle.maps; `key` None: scalar (one element).

    array       the kernel map is an ARRAY or PERCPU_ARRAY: scalar maps of kind "auto". Its elements cannot be deleted;
                whether one *exists* is said by `present`
    per_cpu     the kernel returns one value per possible CPU, each rounded up to 8 bytes
    key_size    bytes of the kernel's key: u32 index for arrays, else the key as `key` says and, where `bucket` >= 0,
                a bucket number behind it; filled up with zeros to a multiple of 8, unless it is a scalar or smaller
    value_size  bytes of the kernel's value (of one CPU)
    bucket      offset of a u32 bucket number in the kernel's key, -1 for none. Zero bytes fill up to it. (In arrays the
                index itself is the bucket number: key_size 4, bucket 0.)
    present     offset in the value of a u64 that is not zero when the element exists (on any CPU), -1: it exists
                because the kernel has it

    Values, per CPU where `per_cpu`; "total" of a map element means over all CPUs:

    count, sum   u64/i64 at 0. Total: the sum
    min, max     value at 0, u64 at 8 not zero when this CPU has one. Total: over CPUs that have one
    avg, stats   i64/u64 total at 0, u64 count at 8. Totals: the sums; both zero: does not exist
    hist         one element of u64 per bucket, see `hist_bucket_low`: hash: key = (user key, bucket); scalar: an array
                 indexed by bucket. Buckets without an element, or zero, are empty
    lhist        likewise, see `lhist_bucket_low`
    tseries      one element per interval: bucket = epoch % intervals, value: u64 epoch at 0, value at 8, u64 meta at
                 16. epoch = wall clock / interval_ns (CLOCK_REALTIME in ns, by its difference to the boot
                 clock when tracing started), a slot with meta 0 is empty, with an old epoch is stale (its
                 interval is over: ignore it). Slots of one epoch combine over CPUs by kind: "sum" adds; "min", "max";
                 "avg" value is the sum and meta the count; "none" meta is the time of the value, the latest wins
    anything else: the value by `value` at 0
    """

    name: str
    index: int
    key: Shape | None
    value: Shape
    per_cpu: bool = False
    max_entries: int = 0
    array: bool = False
    key_size: int = 4
    value_size: int = 8
    bucket: int = -1
    present: int = -1


def hist_buckets(bits: int) -> int:
    """Number of buckets of hist(n, bits)."""
    return ((62 - bits) << bits) + (2 << bits) + 1


def hist_bucket_low(bucket: int, bits: int) -> int | None:
    """Smallest value in a bucket of hist(n, bits); it ends before the next bucket's. None for bucket 0, the
    negative values. Values below 2^(bits+1) have a bucket each; above, each power of two is cut in 2^bits buckets."""
    if bucket <= 0:
        return None
    linear = bucket - 1
    if linear < 2 << bits:
        return linear
    shift = (linear >> bits) - 1
    return ((linear & ((1 << bits) - 1)) + (1 << bits)) << shift


def lhist_buckets(low: int, high: int, step: int) -> int:
    """Number of buckets of lhist(n, low, high, step): below, one per whole step, above. As in bpftrace, what is left of
    the range behind the last whole step counts as above."""
    return (high - low) // step + 2


def lhist_bucket_low(bucket: int, low: int, high: int, step: int) -> int | None:
    """Smallest value in a bucket of lhist(); None for bucket 0, the values below `low`. The last bucket, which has no
    end, starts at `high` or less than a step below it."""
    if bucket <= 0:
        return None
    return low + (bucket - 1) * step


class EventField(Record, frozen=True):
    """A value in an event's record at `offset` from the record's start."""

    offset: int
    shape: Shape


class EventLayout(Record, frozen=True):
    """One event site; its number is its index in Reader.events.

    action  printf errorf warnf print print_map clear zero exit time join cat system strftime skboutput capture
            unwatch watchpoint runtime_error
    format  the format string with C escapes resolved (printf and the like, time, cat, system)
    map     name of the map for print_map, clear, zero
    fields  in the order of the format's conversions
    options by name: top, div (constants). capture: link, the LINKTYPE of pcap files; the fields are CLOCK_BOOTTIME in
            ns, the packet's length, and its bytes, as many as the record has. runtime_error: kind "helper" (then
            helper: its name, and the one field is its result, an i32), "divide_by_zero", "array_bounds", "kstack",
            "ustack", "dw_ustack"
    where   "file:line:col-col" of the call, for messages: the second column is behind its end; "file:line:col" where it
            ends on another line
    """

    action: str
    size: int
    format: bytes = b""
    map: str = ""
    fields: tuple[EventField, ...] = ()
    options: dict[str, int | str] = {}
    where: str = ""


# Every record in the rings starts with: u32 event number, u32 probe number (index in Reader.probes).
EVENT_HEADER = 8

# Offsets into the session map (ARRAY, one value): the client writes it before anything attaches.
SESSION_START_NS = 0  # CLOCK_BOOTTIME when tracing started, for `elapsed`
SESSION_CPID = 8  # pid of the -c child, 0 for none
SESSION_PID = 16  # pid of the tracer itself in the initial namespace
SESSION_STOPPED = 24  # u32: set by exit(): programs return early
SESSION_WALL_OFFSET_NS = 32  # CLOCK_REALTIME - CLOCK_BOOTTIME, for nsecs(sw_tai)
SESSION_SIZE = 40

# Slots of the map of deferred work: how often a deferred block was reached, has run, was not scheduled (the same block
# was pending in the same task, or there was no memory), could not run since its task had ended. What is missing to the
# first is pending. Kernel threads, which never return to user space, are counted apart.
DEFERRED_SCHEDULED, DEFERRED_RUN, DEFERRED_DROPPED, DEFERRED_CANCELLED, DEFERRED_KERNEL = range(5)
DEFERRED_SLOTS = 5


class Reader(Record, frozen=True):
    """Everything the client knows about a Bundle beyond what the kernel is told.

    ring      index of the RINGBUF for events, -1 without events
    control   index of the small second RINGBUF that control events (exit, clear, zero, print of a map) fall back to
              when the first is full, -1 for none
    counters  index of the PERCPU_ARRAY of u64: slot 0 lost events; slot 1 + n failed updates of maps[n]; -1 for none
    session   index of the session ARRAY (SESSION_* above), -1 when no program reads it
    stacks    indexes of the maps of stacks by "kernel"/"user" + "_" + depth (with "_build_id" behind it for that mode):
              HASH, key: the i64 id of a stack value, value: u64 addresses (build ids: struct bpf_stack_build_id), as
              many as the stack value says, then zeros
    deferred  index of the PERCPU_ARRAY of u64 about deferred work (DEFERRED_* above); -1 without
    work      indexes of the maps whose elements are pending deferred blocks, one map per block
    unwind    indexes of the maps of mappings and of rows that dw_ustack() walks by (compiler.unwind); empty without
    formats   texts that values name by number: the formats of Timestamp values, the filters of CgroupPath values
    """

    version: int
    maps: tuple[MapLayout, ...]
    events: tuple[EventLayout, ...]
    probes: tuple[str, ...]
    ring: int = -1
    control: int = -1
    counters: int = -1
    session: int = -1
    stacks: dict[str, int] = {}
    deferred: int = -1
    work: tuple[int, ...] = ()
    formats: tuple[bytes, ...] = ()
    unwind: tuple[int, ...] = ()
    enums: dict[str, dict[int, str]] = {}
    config: dict[str, str | int | bool] = {}
    warnings: tuple[str, ...] = ()


READER_VERSION = 1

# Not order="deterministic": that refuses the integer keys of `enums`. Who fills the dicts does so in a fixed order.
_encoder = msgspec.msgpack.Encoder()


def encode(reader: Reader) -> bytes:
    """Canonical bytes."""
    return _encoder.encode(reader)


def decode(data: bytes) -> Reader:
    """The Reader in `Bundle.reader`. Raises BpfsealError when it is not one of this version."""
    try:
        reader = msgspec.msgpack.decode(data, type=Reader)
    except Exception as error:
        raise BpfsealError(f"the bundle's reader section cannot be read: {error}") from None
    if reader.version != READER_VERSION:
        raise BpfsealError(f"reader version {reader.version} is not {READER_VERSION}")
    return reader
