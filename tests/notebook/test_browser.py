"""The notebook as its user sees it: a real JupyterLab, and a headless Chromium that clicks, types and looks.

Screenshots stay in build/browser/ for people to look at.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator

import pytest

from tests.notebook import browser
from tests.notebook.test_host import _objects

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.usefixtures("bpf_permitted")]

PICTURES = browser.ROOT / "build" / "browser"

LIVE = """%%bpfseal --name ticks --live --every 300ms --for 300s
// what the picture shows
config = { unstable_tseries = enable }
interval:ms:20 {
    @spread = hist(nsecs % 1000000);
    @by[comm, probe] = count();
    @rate = tseries(1, 200ms, 30, "sum");
    printf("%d ticks\\n", elapsed / 20000000);
}"""

CELLS = [
    "%load_ext bpfseal\nimport os\nprint('kernel', os.getpid())",
    LIVE,
    "%%bpfseal --for 4s\nBEGIN { @work[kstack, comm] = count(); }\nprofile:hz:99 { @work[kstack, comm] = count(); }",
    "%%bpfseal --for 1s\nBEGIN {\n    @x = nonsense;\n}",
    "ticks['@by']",
    "%%bpfseal --background --name left\ninterval:ms:50 { @left = count(); }",
    "plain = 1",
]
KERNEL, CHART, FLAME, WRONG, FRAME, BACKGROUND, PLAIN = range(7)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    for module in ("jupyterlab", "selenium"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install jupyterlab selenium")
    for command in ("chromium", "chromedriver"):
        if shutil.which(command) is None:
            pytest.skip(f"there is no {command} here: apt install chromium chromium-driver")
    folder = tmp_path_factory.mktemp("browser")
    with browser.jupyterlab(folder) as address, browser.chromium(folder) as driver:
        browser.write_notebook(folder / "files" / "seen.ipynb", CELLS)
        made = browser.Page(driver, address.format("seen.ipynb"), PICTURES, len(CELLS))
        run_to_the_end(made, KERNEL)
        yield made


def kernel_process(page: browser.Page) -> int:
    found = re.search(r"kernel (\d+)", page.text(KERNEL))
    assert found is not None
    return int(found[1])


def run_to_the_end(page: browser.Page, number: int, seconds: float = 180) -> None:
    before = page.prompt(number)
    page.run(number)
    page.until(lambda: page.prompt(number) not in (before, "[*]:") and "Idle" in page.kernel(), seconds, "the cell")


def shapes(page: browser.Page, number: int) -> str:
    return "".join(re.findall(r"<rect[^>]*>", page.output(number)))


def test_a_live_cell_from_run_to_rerun(page: browser.Page) -> None:
    process = kernel_process(page)
    page.run(CHART)
    page.until(lambda: "<rect" in page.output(CHART), 180, "the first chart")
    first, bar = shapes(page, CHART), page.progress(CHART)
    page.until(lambda: shapes(page, CHART) != first, 90, "another chart")
    line = page.polyline(CHART)
    page.until(lambda: page.polyline(CHART) != line, 90, "another time series")
    page.until(lambda: page.progress(CHART) > bar, 90, "the bar to grow")
    page.until(lambda: "50 ticks" in page.text(CHART), 90, "events")
    newest = (
        "const box = cell.querySelector('.events'); return box.scrollTop === 0 && box.scrollHeight > box.clientHeight"
    )
    assert page.of(CHART, newest), "the box of events is at its end"
    cells = "return Array.from(cell.querySelectorAll('table td')).slice(0, 3).map(e => getComputedStyle(e).textAlign)"
    assert page.of(CHART, cells) == ["left", "right", "left"]
    page.picture("live")
    assert page.outputs(CHART) == 1, "it is drawn in place"
    assert "running" in page.text(CHART)
    assert "of 300 s" in page.text(CHART)
    assert "Busy" in page.kernel()
    first_programs = _objects(process)
    assert first_programs

    page.command("notebook:interrupt-kernel")
    page.until(lambda: "interrupted" in page.text(CHART), 90, "the trace to stop")
    page.until(lambda: "Idle" in page.kernel(), 90, "the kernel")
    page.picture("interrupted")
    assert page.outputs(CHART) == 1
    assert "@spread" in page.text(CHART)
    assert "KeyboardInterrupt" not in page.text(CHART)
    assert not _objects(process)

    page.run(CHART)
    page.until(lambda: "running" in page.text(CHART) and "<rect" in page.output(CHART), 180, "the cell to run again")
    again = _objects(process)
    assert again
    assert not again & first_programs
    page.command("notebook:interrupt-kernel")
    page.until(lambda: "interrupted" in page.text(CHART) and "Idle" in page.kernel(), 90, "the trace to stop")
    assert page.outputs(CHART) == 1

    run_to_the_end(page, FRAME)
    assert "interval:ms:20" in page.text(FRAME)


def test_a_flame_graph_under_a_bar(page: browser.Page) -> None:
    page.run(FLAME)
    page.until(lambda: page.progress(FLAME) > 0, 180, "the bar")
    page.picture("bar")
    page.until(lambda: "flame graph" in page.output(FLAME), 180, "the flame graph")
    assert page.progress(FLAME) == 0
    boxes = "return Array.from(document.querySelectorAll('svg[aria-label=\"flame graph\"] g'))"
    narrow = page.script(f"{boxes}.findIndex(g => +g.dataset.w < 0.9 && +g.dataset.d === 1)")
    assert narrow > 0
    width = f"{boxes}[arguments[0]].querySelector('rect').getBoundingClientRect().width"
    before = page.script(width, narrow)
    page.script(f"{boxes}[0].scrollIntoView({{block: 'end'}})")
    page.picture("flame")
    page.script(
        f"{boxes}[arguments[0]].querySelector('rect').dispatchEvent(new MouseEvent('click', {{bubbles: true}}))", narrow
    )
    assert page.script(width, narrow) > before
    page.picture("flame-zoomed")


def test_a_mistake_is_marked(page: browser.Page) -> None:
    run_to_the_end(page, WRONG)
    page.picture("mistake")
    assert "line 2, column 10" in page.text(WRONG)
    marked = page.of(
        WRONG,
        "const b = cell.querySelector('.bpfseal-error b[style*=wavy]');"
        "return b && getComputedStyle(b).textDecorationLine + ' ' + b.textContent",
    )
    assert marked == "underline nonsense"
    assert "Traceback" not in page.text(WRONG)


def test_cells_are_in_the_colours_of_the_language(page: browser.Page) -> None:
    assert page.language(CHART) == "bpfseal"
    assert page.language(PLAIN) == "python"
    colours = page.colours(CHART)
    kinds = [
        colours[word] for word in ("interval:", "ms:20", "// what the picture shows", "hist", "elapsed", "@spread")
    ]
    assert kinds[0] == kinds[3]
    assert len(set(kinds)) == 5, colours
    page.type_at_start(PLAIN, "%%bpfseal\n")
    page.until(lambda: page.language(PLAIN) == "bpfseal", 90, "the language of a cell that was changed")


def test_a_restart_leaves_nothing_in_the_kernel(page: browser.Page) -> None:
    run_to_the_end(page, BACKGROUND)
    process = kernel_process(page)
    programs = _objects(process)
    assert programs
    page.command("notebook:restart-kernel")
    page.confirm()
    page.until(lambda: not os.path.exists(f"/proc/{process}"), 180, "the kernel to end")
    from bpfseal.runtime import bpf_info

    page.until(lambda: not programs & set(bpf_info.ids("prog")), 90, "the programs to go")
