"""What the helper remembers of its users: counts, processor time, rates. Nothing of one user is shown to another."""

from __future__ import annotations

import time

from msgspec import Struct, field

REFUSALS_PER_MINUTE = 60
COUNTED_USERS = 4096


class User(Struct):
    """One uid. `buckets` holds (tokens, time of the last look) by rule; `suppressed` the refusals of this minute that
    got no record of their own, `all_suppressed` those of all time."""

    sealed: int = 0
    refused: int = 0
    cpu_ns: int = 0
    minute: int = 0
    refusals_in_minute: int = 0
    suppressed: int = 0
    all_suppressed: int = 0
    buckets: dict[str, tuple[float, float]] = field(default_factory=dict)


class Users:
    """By uid, made when first asked for. The one seen first is forgotten when there are too many."""

    def __init__(self) -> None:
        self._users: dict[int, User] = {}

    def __getitem__(self, uid: int) -> User:
        user = self._users.get(uid)
        if user is None:
            if len(self._users) >= COUNTED_USERS:
                del self._users[next(iter(self._users))]
            user = self._users[uid] = User()
        return user

    def within_rate(self, uid: int, rule: str, per_minute: int) -> bool:
        """Takes one token from a bucket that holds a minute's worth, if there is one."""
        buckets, now = self[uid].buckets, time.monotonic()
        tokens, last = buckets.get(rule, (float(per_minute), now))
        tokens = min(float(per_minute), tokens + (now - last) * per_minute / 60)
        allowed = tokens >= 1
        buckets[rule] = (tokens - allowed, now)
        return allowed

    def may_log_refusal(self, uid: int) -> bool:
        """Whether a refusal gets a record of its own; a flood of them is one record with a count."""
        user = self[uid]
        user.refusals_in_minute += 1
        if user.refusals_in_minute <= REFUSALS_PER_MINUTE:
            return True
        user.suppressed += 1
        user.all_suppressed += 1
        return False

    def end_of_minute(self, uid: int) -> int:
        """How many refusals the last minute of this user left unrecorded, told once."""
        user, minute = self[uid], int(time.monotonic() // 60)
        if minute == user.minute:
            return 0
        count = user.suppressed
        user.minute, user.refusals_in_minute, user.suppressed = minute, 0, 0
        return count

    def totals(self) -> dict[str, int]:
        users = self._users.values()
        return {
            "sealed": sum(user.sealed for user in users),
            "refused": sum(user.refused for user in users),
            "suppressed": sum(user.all_suppressed for user in users),
            "users": len(users),
        }
