"""For all tests: what hypothesis tries is never too slow for it, since the machine may be busy with other things."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("bpfseal", deadline=None)
settings.load_profile("bpfseal")
