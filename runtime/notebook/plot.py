"""Charts through pandas and matplotlib, for who wants to go on from them."""

from __future__ import annotations

from typing import Any

from bpfseal.runtime.notebook.data import Snapshot
from bpfseal.runtime.notebook.trouble import Refused
from bpfseal.runtime.render.histogram import linear_label, log2_label

_TOP = 30


def plot(shot: Snapshot, name: str | None = None, **options: Any) -> Any:
    """The matplotlib axes of a chart of one map; see `Data.plot`."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise Refused("plot() needs matplotlib", hint="pip install matplotlib") from None
    from bpfseal.runtime.records import frames

    pd = frames.pandas()
    if name is None:
        if len(shot.contents) != 1:
            known = ", ".join(sorted(shot.contents)) or "none"
            raise Refused(f"say which map to plot; the program has: {known}")
        name = next(iter(shot.contents))
    contents = shot.contents.get(name if name in shot.contents else f"@{name}")
    if contents is None:
        raise Refused(f"the program has no map {name}")
    frame = shot.map_frame(name)
    if contents.kind in ("hist", "lhist"):
        label = log2_label if contents.kind == "hist" else linear_label
        lookup = shot.recording.lookup
        assert lookup is not None
        columns = {
            lookup.key(key) or contents.name: pd.Series({label(bucket): bucket.count for bucket in buckets})
            for key, buckets in contents.items
        }
        return pd.DataFrame(columns).plot.bar(**options)
    if contents.kind == "tseries":
        keys = [column for column in frame.columns if column not in ("time", "value")]
        table = frame.pivot_table(index="time", columns=keys, values="value", observed=True) if keys else frame
        return (table if keys else table.set_index("time")).plot(**options)
    numbers = [column for column in frame.columns if pd.api.types.is_numeric_dtype(frame[column])]
    if not numbers:
        raise Refused(f"{contents.name} has no numbers to plot")
    keys = [column for column in frame.columns if column not in numbers[-1:]]
    labels = frame[keys].astype(str).agg(", ".join, axis=1) if keys else [contents.name]
    values = frame[numbers[-1]].to_numpy()
    return pd.Series(values, index=list(labels), name=numbers[-1]).head(_TOP).iloc[::-1].plot.barh(**options)
