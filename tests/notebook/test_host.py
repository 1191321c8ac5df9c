"""Cells that trace the running kernel."""

from __future__ import annotations

import os
import re
import threading
import time
from typing import Any

import pytest

from bpfseal.runtime import bpf_info

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("bpf_permitted")]

# A process that cannot be mistaken for another: this one, at a system call that nobody else here makes for it.
HERE = f"/pid == {os.getpid()}/"
OPENS = f"tracepoint:syscalls:sys_enter_openat {HERE}"


def open_files(path: str, times: int) -> None:
    for _ in range(times):
        os.close(os.open(path, os.O_RDONLY))


def owned() -> set[tuple[str, str]]:
    """(kind, id) of the BPF objects that this process has open."""
    found = set()
    for fd in os.listdir("/proc/self/fdinfo"):
        try:
            with open(f"/proc/self/fdinfo/{fd}") as file:
                fields = dict(line.split(":", 1) for line in file.read().splitlines() if ":" in line)
        except OSError:
            continue
        found |= {(kind, fields[kind].strip()) for kind in ("prog_id", "map_id", "link_id") if kind in fields}
    return found


def test_a_cell_gives_maps_and_events_as_frames(cell: Any) -> None:
    done = cell(
        '%%bpfseal --for 300ms\nBEGIN { @n[comm, pid] = count(); @h = hist(5); printf("%d %s %x\\n", pid, comm, 255); }'
    )
    assert done.error is None, done.out
    trace = done.value
    assert trace.state == "done"
    frame = trace["@n"]
    assert list(frame.columns) == ["comm", "pid", "count"]
    assert (frame.pid[0], frame["count"][0]) == (os.getpid(), 1)
    assert str(frame.comm.dtype) == "category"
    assert str(frame.pid.dtype) == "uint32"
    assert trace["@h"].to_dict("records") == [{"low": 4, "high": 8, "count": 1}]
    events = trace.events
    assert list(events.columns) == ["pid", "comm", "arg2"]
    assert events.pid[0] == os.getpid()
    assert events.arg2[0] == 255
    assert "@h:" in trace.text
    assert f"{os.getpid()}" in trace.text
    assert not owned()


def test_several_sites_keep_the_order_of_arrival(cell: Any) -> None:
    done = cell('%bpfseal --for 5s BEGIN { print((1, "one")); printf("%s\\n", "two"); print((3, "three")); exit(); }')
    trace = done.value
    assert [event.text for event in trace] == ["(1, one)\n", "two\n", "(3, three)\n"]
    events = trace.events
    assert len(events) == 3
    assert events.value0.tolist()[0] == 1
    assert str(events.value0.dtype).lower().startswith("int")
    assert events.value1.tolist()[2] == "three"


def test_stacks_are_named_after_the_end(cell: Any) -> None:
    trace = cell("%bpfseal BEGIN { @[kstack] = count(); exit(); }").value
    folded = str(trace["@"].kstack[0])
    names = folded.split(";")
    if all(name.startswith("0x") for name in names):
        pytest.skip("no symbols here: python3-bpfcc is not installed")
    assert names.index("do_syscall_64") < names.index("__sys_bpf")
    html = trace._repr_html_()
    assert "<svg" in html
    assert "do_syscall_64" in html


def test_background_stop_snapshot_and_iteration(cell: Any) -> None:
    done = cell(f'%%bpfseal --background --name bg\n{OPENS} {{ printf("%s\\n", str(args.filename)); @ = count(); }}')
    trace = done.value
    assert done.error is None, done.out
    assert trace.running
    open_files("/etc/hostname", 3)
    seen = []
    for event in trace:
        if event.values == ("/etc/hostname",):
            seen.append(event)
        if len(seen) == 3:
            break
    early = trace.snapshot()
    before = early["@"]["count"][0]
    assert before >= 3
    open_files("/etc/hostname", 4)
    trace.stop()
    assert trace.state == "done"
    assert early["@"]["count"][0] == before
    assert trace["@"]["count"][0] >= before + 4
    assert (trace.events.filename == "/etc/hostname").sum() == 7
    assert not owned()
    trace.stop()


def test_the_same_name_replaces_the_trace(cell: Any) -> None:
    first = cell("%%bpfseal --background --name again\ninterval:s:9 { @a = 1; }").value
    second = cell("%%bpfseal --background --name again\ninterval:s:9 { @b = 1; }").value
    assert not first.running
    assert second.running
    assert list(second.maps) == ["@b"]


def test_the_same_cell_replaces_the_trace(cell: Any) -> None:
    text = "%%bpfseal --background\ninterval:s:9 { @a = 1; }"
    first, second = cell(text).value, cell(text).value
    assert not first.running
    assert second.running


def test_interrupt_keeps_the_data(cell: Any, ipython: Any) -> None:
    import signal

    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        """Once the trace runs, as the stop button does."""
        while getattr(ipython.user_ns.get("long"), "state", "") != "running":
            time.sleep(0.05)
        time.sleep(0.2)
        signal.pthread_kill(main, signal.SIGINT)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt, daemon=True)
    began = time.monotonic()
    thread.start()
    try:
        trace = cell("%%bpfseal --for 60s --name long\nBEGIN { @begun = 1; } interval:s:50 { @late = 1; }").value
    finally:
        signal.signal(signal.SIGINT, previous)
    assert trace.state == "interrupted"
    assert trace.maps == {"@begun": {None: 1}, "@late": {}}
    assert time.monotonic() - began < 30
    assert not owned()


def test_mistakes_are_marked(cell: Any) -> None:
    done = cell("%%bpfseal --for 1s\nBEGIN {\n  @x = nonsense;\n}")
    assert done.error is not None
    assert type(done.error).__name__ == "TraceFailed"
    assert "cell:2:8" in done.out
    assert "~~~~~~~~" in done.out
    assert "Traceback" not in done.out


def test_the_failure_of_a_trace_is_one_message(cell: Any) -> None:
    done = cell("%%bpfseal --pid 999999999\nBEGIN { exit(); }")
    assert done.error is not None
    assert "999999999" in str(done.error)
    assert not owned()


def test_values_of_the_notebook(cell: Any) -> None:
    cell("limit = -7\nwords = 'a\"); exit(9); //\\n%s'")
    trace = cell(
        '%%bpfseal --for 5s\nBEGIN { @n = ${limit}; @s = ${words}; printf("%s ${limit}", ${words}); exit(); }'
    ).value
    assert trace.status == 0
    assert trace.maps["@n"] == {None: -7}
    assert trace.maps["@s"] == {None: 'a"); exit(9); //\n%s'}
    # inside a string ${…} stays as it is
    assert trace.text.startswith('a"); exit(9); //\n%s ${limit}')
    failed = cell("%bpfseal BEGIN { @ = ${undefined_name}; }")
    assert "NameError" in str(failed.error)


def test_live_draws_in_place_and_ends_with_the_data(cell: Any) -> None:
    done = cell("%%bpfseal --live --every 200ms --for 900ms --name lively\ninterval:ms:100 { @ticks = count(); }")
    assert done.error is None, done.out
    assert done.value is None
    assert len(done.displayed) >= 3
    last = done.displayed[-1].data["text/html"]
    assert "@ticks" in last
    assert ">done<" in last
    assert "<progress" in done.displayed[0].data["text/html"]


def test_a_bar_shows_how_long_a_trace_will_take(cell: Any) -> None:
    done = cell('%%bpfseal --for 1200ms\ninterval:ms:100 { printf("tick\\n"); }')
    assert done.error is None, done.out
    pages = [shown.data["text/html"] for shown in done.displayed]
    bars = [float(bar) for page in pages for bar in re.findall(r'<progress max="1" value="([\d.]+)">', page)]
    assert bars == sorted(bars)
    assert 0 <= bars[0] <= bars[-1] <= 1
    assert "of 1.2 s" in pages[0]
    # It is gone when the trace is there.
    assert pages[-1] == ""
    assert done.value.state == "done"
    # What is over at once, or nobody knows when, has none.
    assert not cell("%bpfseal --for 200ms interval:ms:50 { @ = count(); }").displayed
    assert not cell("%bpfseal BEGIN { exit(); }").displayed


def test_an_interrupt_that_comes_early_leaves_nothing(cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the moment that everything is attached and the one in which the cell waits."""
    from bpfseal.runtime.notebook import live

    def interrupted(run: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(live, "follow", interrupted)
    trace = cell("%%bpfseal --for 60s\nBEGIN { @begun = 1; } interval:s:50 { @late = 1; }").value
    assert (trace.running, trace.state) == (False, "interrupted")
    assert trace.maps == {"@begun": {None: 1}, "@late": {}}
    assert not owned()


def test_what_never_began_is_over(cell: Any, ipython: Any) -> None:
    from bpfseal.runtime.build import Request
    from bpfseal.runtime.notebook.run import Run
    from bpfseal.runtime.sealing import Signing

    cell("%bpfseal BEGIN { nonsense }")
    wrong = ipython.user_ns["_trace"]
    assert (wrong.state, list(wrong), list(wrong.snapshot())) == ("failed", [], [])
    assert "nonsense" in wrong._repr_html_()
    early = Run(Request(text="BEGIN { }"), Signing("auto"))
    early.interrupt()
    assert (early.state, list(early), early.maps, len(early.events)) == ("interrupted", [], {}, 0)
    assert ">interrupted<" in early._repr_html_()


def test_a_trace_that_fails_in_the_background_says_why(cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from bpfseal.errors import BpfsealError
    from bpfseal.runtime.session import Session

    def fail(session: Session) -> None:
        raise BpfsealError("<the disk> is full")

    trace = cell("%%bpfseal --background --name failing\ninterval:ms:50 { @ = count(); }").value
    monkeypatch.setattr(Session, "finish", fail)
    trace.stop()
    assert trace.state == "failed"
    assert "&lt;the disk&gt; is full" in trace._repr_html_()
    assert "ERROR: <the disk> is full" in trace._repr_mimebundle_()["text/plain"]
    monkeypatch.undo()
    assert not owned()


def test_the_badge_says_who_signed(cell: Any) -> None:
    trace = cell("%bpfseal BEGIN { exit(); }").value
    seal = trace.seal
    assert seal.signed_by in ("private helper", "system helper")
    assert len(seal.certificate) == 64
    assert seal.record > 0
    assert seal.verified or seal.why
    html = trace._repr_html_()
    assert seal.certificate[:16] in html
    assert ("not verified by the kernel" in html) != seal.verified
    unsigned = cell("%bpfseal --signing off BEGIN { exit(); }").value
    assert "not signed" in unsigned._repr_html_()


def test_stop_all(cell: Any) -> None:
    traces = [cell(f"%%bpfseal --background --name t{n}\ninterval:s:9 {{ @a{n} = 1; }}").value for n in range(2)]
    cell("%bpfseal --stop")
    assert not any(trace.running for trace in traces)
    assert not owned()


def test_time_series_and_stats(cell: Any) -> None:
    trace = cell(
        "%%bpfseal --for 5s\nconfig = { unstable_tseries = enable }\n"
        'BEGIN { @t = tseries(4, 100ms, 8, "sum"); @s["x"] = stats(3); @l = lhist(5, 0, 10, 2); @a = avg(8); exit(); }'
    ).value
    assert trace["@t"].value.tolist() == [4]
    assert str(trace["@t"].time.dtype) == "datetime64[ns, UTC]"
    assert trace["@s"].to_dict("records") == [{"key": "x", "count": 1, "average": 3, "total": 3}]
    assert trace["@l"].to_dict("records") == [{"low": 4, "high": 6, "count": 1}]
    assert trace["@a"].avg.tolist() == [8]
    html = trace._repr_html_()
    assert html.count("<svg") == 2
    with pytest.raises(KeyError, match="it has @a, @l, @s, @t"):
        trace["@nothing"]


def test_times_are_the_same_whenever_one_looks(cell: Any) -> None:
    trace = cell(
        '%bpfseal BEGIN { @t[strftime("%H", nsecs)] = 1; printf("%s\\n", strftime("%H", nsecs)); print("x"); exit(); }'
    ).value
    first, second = trace.events, trace.events
    assert first.nsecs.equals(second.nsecs)
    assert trace["@t"].equals(trace["@t"])
    assert abs(first.nsecs[0].timestamp() - time.time()) < 600
    assert str(first.site.dtype) == "category"


def test_lists_and_help(cell: Any) -> None:
    probes = cell("%bpfseal -l tracepoint:syscalls:sys_enter_opena*").value
    assert "tracepoint:syscalls:sys_enter_openat" in list(probes)
    verbose = cell("%bpfseal -v -l tracepoint:syscalls:sys_enter_openat").value
    assert any("filename" in line for line in verbose)
    assert "hist(" in repr(cell("%bpfseal --doc hist").value)
    assert "did you mean" in cell("%bpfseal --doc hisst").out


def test_completion(cell: Any) -> None:
    from bpfseal.runtime.notebook.completion import complete

    def offered(before: str) -> list[str]:
        return [text for text, _ in complete(before)[1]]

    assert offered("%%bpfseal --na") == ["--name"]
    assert offered("%%bpfseal\ntracep") == ["tracepoint:"]
    assert "tracepoint:syscalls:" in offered("%%bpfseal\ntracepoint:sysc")
    opens = "%%bpfseal\nBEGIN { @a = 1; }\ntracepoint:syscalls:sys_enter_openat"
    assert "tracepoint:syscalls:sys_enter_openat" in offered(opens[:-2])
    assert "filename" in offered(opens + " { $f = args.fi")
    assert offered(opens + ' { printf("args.') == []
    assert "filename" in offered(opens + " { if (1) { $f = args.fi")
    assert "printf(" in offered("x = %bpfseal BEGIN { pri")
    assert offered("%%bpfseal\nBEGIN { @counted = 1; @cou") == ["@counted"]
    assert offered("print('a')\npri") == []
    # values of options, and files of probes
    assert offered("%%bpfseal --signing re") == ["require"]
    assert offered("%bpfseal --doc histo") == []
    assert {"hist", "has_key"} <= set(offered("%bpfseal --doc h"))
    assert offered("%bpfseal -l tracepoint:sched:sched_switc") == ["tracepoint:sched:sched_switch"]
    assert "uprobe:/usr/" in offered("%%bpfseal\nuprobe:/us")
    assert "uprobe:/proc/self/exe:" in offered("%%bpfseal\nuprobe:/proc/self/ex")
    if cell("%bpfseal -l uprobe:/bin/bash:readline").value:
        assert "uprobe:/bin/bash:readline" in offered("%%bpfseal\nBEGIN { @ = 1; } uprobe:/bin/bash:readl")
    assert offered("%%bpfseal\ntracepoint:a:b /pid == 1/ { @ = 5 / uret") == []


def test_python_is_not_offered_in_a_program(ipython: Any) -> None:
    from IPython.core.completer import provisionalcompleter

    ipython.user_ns["zebra_of_the_notebook"] = 1

    def offered(text: str) -> set[str]:
        with provisionalcompleter():
            return {one.text for one in ipython.Completer.completions(text, len(text))}

    name = "zebra_of_the_notebook"
    assert name in offered("zebra_of")
    assert name in offered("%%bpfseal\nBEGIN { @ = ${zebra_of")
    assert name in offered("x = %bpfseal BEGIN { exit(); }\nzebra_of")
    ipython.user_ns["printfarm"] = 1
    assert "printfarm" in offered("printf")
    assert offered("%%bpfseal\nBEGIN { printf") == {"printf("}


def test_help_on_what_the_cursor_is_at() -> None:
    from bpfseal.runtime.notebook.inspection import help_at

    def title(text: str) -> str | None:
        found = help_at(text.replace("|", ""), text.index("|"))
        return found and str(found.title)

    assert title("%%bpfseal\nBEGIN { @ = hi|st(5); }") == "hist"
    assert title("%%bpfseal\nBEGIN { @ = |comm; }") == "comm"
    assert title("%%bpfseal\nBEGIN { @ = lhist(5, 0, |") == "lhist"
    assert title("x = %bpfseal BEGIN { printf(|") == "printf"
    assert title("%%bpfseal\nBEGIN { unknown| }") is None
    assert title("hist|") is None
    assert title("%%bpfseal\nBEGIN { @ = ${hist|} }") is None


def test_missing_rights_are_named(tmp_path: Any) -> None:
    import shutil
    import subprocess
    import sys

    setpriv = shutil.which("setpriv")
    if setpriv is None or os.geteuid() != 0:
        pytest.skip("needs root and setpriv(1) to give rights away")
    text = (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "s = InteractiveShell.instance(); s.history_manager.enabled = False\n"
        "s.run_line_magic('load_ext', 'bpfseal')\n"
        "s.run_cell('%bpfseal --signing off BEGIN { @ = 1; exit(); }')\n"
    )
    done = subprocess.run(
        [setpriv, "--bounding-set=-bpf,-perfmon,-sys_admin", sys.executable, "-c", text],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "IPYTHONDIR": str(tmp_path)},
    )
    assert "lacks CAP_BPF and CAP_PERFMON" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_completion_through_ipython(ipython: Any) -> None:
    from IPython.core.completer import provisionalcompleter

    text = "%%bpfseal --for 1s\nBEGIN { prin"
    with provisionalcompleter():
        found = list(ipython.Completer.completions(text, len(text)))
    assert {"print(", "printf("} <= {one.text for one in found}
    assert {(one.start, one.end) for one in found} == {(len(text) - 4, len(text))}
    plain = "some_variable = 3; pri"
    with provisionalcompleter():
        assert "printf(" not in {one.text for one in ipython.Completer.completions(plain, len(plain))}


def test_a_stream_keeps_its_newest_events(cell: Any) -> None:
    done = cell(
        f'%%bpfseal --name few --background --keep 10\n{OPENS} {{ printf("%s %d\\n", str(args.filename), cpu); }}'
    )
    assert done.error is None, done.out
    for number in range(60):
        try:
            os.open(f"/nonexistent/{number}", os.O_RDONLY)
        except FileNotFoundError:
            time.sleep(0.005)
    trace = done.value.stop()
    kept = list(trace.events.filename)
    assert kept[-1] == "/nonexistent/59"
    assert len(kept) <= 60
    assert trace.snapshot().dropped + len(trace.snapshot().entries) >= 60


def test_commands_and_processes(cell: Any) -> None:
    trace = cell(
        "%%bpfseal --cmd 'cat /etc/hostname'\nt:syscalls:sys_enter_openat /pid == cpid/ { @[comm] = count(); }"
    ).value
    assert trace["@"].comm.tolist() == ["cat"]
    missing = cell("%bpfseal --cmd /nonexistent/command BEGIN { @ = 1; }")
    assert "/nonexistent/command" in missing.out
    assert not owned()


def test_unloading_stops_what_runs(ipython: Any, cell: Any) -> None:
    trace = cell("%%bpfseal --background\ninterval:s:9 { @ = 1; }").value
    cell("%unload_ext bpfseal")
    try:
        assert not trace.running
        gone = cell("%bpfseal BEGIN { exit(); }")
        assert gone.value is None
        assert "not found" in gone.out + gone.err
    finally:
        cell("%load_ext bpfseal")
    assert cell("%bpfseal BEGIN { @ = 3; exit(); }").value.maps == {"@": {None: 3}}


def test_charts_with_matplotlib(cell: Any) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    matplotlib.use("Agg")
    trace = cell('%bpfseal BEGIN { @h = hist(3); @c["a"] = count(); @c["b"] = count(); exit(); }').value
    axes = trace.plot("@h")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["[2, 4)"]
    axes = trace.plot("c")
    assert sorted(label.get_text() for label in axes.get_yticklabels()) == ["a", "b"]
    from bpfseal.errors import BpfsealError

    with pytest.raises(BpfsealError, match="which map"):
        trace.plot()
    cell("charted = _trace")
    shown = cell("charted.plot()").out
    assert "which map" in shown
    assert "Traceback" not in shown


def test_polars_and_arrow(cell: Any) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    trace = cell('%bpfseal BEGIN { @c["a"] = count(); printf("%d %s\\n", 5, "x"); exit(); }').value
    assert trace.arrow("@c").to_pydict() == {"key": ["a"], "count": [1]}
    polars = pytest.importorskip("polars", reason="polars is not installed")
    assert isinstance(trace.polars(), polars.DataFrame)


def test_nothing_is_left_of_a_dead_process() -> None:
    """What a killed notebook kernel had loaded dies with it, and so does its private helper."""
    import subprocess
    import sys

    text = (
        "import sys, time\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "s = InteractiveShell.instance(); s.history_manager.enabled = False\n"
        "s.run_line_magic('load_ext', 'bpfseal')\n"
        "s.run_cell('%%bpfseal --background --name k\\ninterval:s:9 { @ = 1; }')\n"
        "assert s.user_ns['k'].running\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        lines = iter(child.stdout.readline, b"")
        assert any(line == b"up\n" for line in lines)
        with open(f"/proc/{child.pid}/task/{child.pid}/children") as file:
            helpers = file.read().split()
        for task in os.listdir(f"/proc/{child.pid}/task"):
            with open(f"/proc/{child.pid}/task/{task}/children") as file:
                helpers += file.read().split()
        progs = _objects(child.pid)
        assert progs
        assert helpers
    finally:
        child.kill()
        child.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and (_alive(helpers) or progs & set(bpf_info.ids("prog"))):
        time.sleep(0.1)
    assert not _alive(helpers)
    assert not progs & set(bpf_info.ids("prog"))


def _alive(pids: list[str]) -> list[str]:
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def _objects(pid: int) -> set[int]:
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fdinfo"):
        with open(f"/proc/{pid}/fdinfo/{fd}") as file:
            fields = dict(line.split(":", 1) for line in file.read().splitlines() if ":" in line)
        if "prog_id" in fields:
            found.add(int(fields["prog_id"]))
    return found


def test_what_is_traced_cannot_control_the_page_or_the_terminal(cell: Any) -> None:
    cell("bad = '<script>alert(1)</script>\\x1b[2J&'")
    trace = cell(
        '%%bpfseal\nBEGIN { $b = ${bad}; @m[$b] = count(); @h[$b] = hist(1); printf("%s\\n", $b); print($b); exit(); }'
    ).value
    html = trace._repr_html_()
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4
    assert "\x1b" not in html
    plain = trace._repr_mimebundle_()["text/plain"]
    assert "\x1b" not in plain
    assert "\\x1b[2J" in plain
    # The data themselves are as they were.
    assert trace["@m"].iloc[0, 0] == "<script>alert(1)</script>\x1b[2J&"
