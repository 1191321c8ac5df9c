"""A JupyterLab of its own and a headless Chromium that looks at it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
EXTENSION = ROOT / "runtime/notebook/labextension"
# Nothing here leaves this machine: no updates, no reports, no names but one address.
_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1400,1500 "
    "--force-device-scale-factor=1"
)


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """Address (with its token) of a server whose files are in `folder`/files; ends with its kernels."""
    files, share = folder / "files", folder / "share"
    files.mkdir(exist_ok=True)
    # Where an installed wheel has it: share/jupyter/labextensions.
    shutil.copytree(EXTENSION, share / "labextensions" / "bpfseal")
    settings = {
        # All cells are in the page, also those that are out of sight.
        "notebook-extension/tracker": {"windowingMode": "none"},
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }
    for name, values in settings.items():
        path = folder / f"config/lab/user-settings/@jupyterlab/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    environment = {
        **os.environ,
        "HOME": str(folder),
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTER_PATH": str(share),
        "PYTHONPATH": str(ROOT / "src"),
    }
    log = (folder / "jupyterlab.log").open("wb")
    server = subprocess.Popen(
        [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
            "--ServerApp.port_retries=0", f"--ServerApp.root_dir={files}", f"--IdentityProvider.token={token}",
            "--LabApp.extension_manager=readonly", "--LabApp.news_url=None",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ],
        env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        _until(lambda: _answers(f"{address}/api?token={token}"), 300, f"JupyterLab: {folder / 'jupyterlab.log'}")
        yield f"{address}/lab/tree/{{}}?token={token}&reset"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        log.close()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def _until(done: Callable[[], Any], seconds: float, what: str) -> Any:
    end = time.monotonic() + seconds
    while True:
        found = done()
        if found:
            return found
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.1)


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Any]:
    """A driver of a headless browser that nobody has used before."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*_FLAGS.split(), f"--user-data-dir={folder / 'browser'}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def write_notebook(path: Path, cells: list[str]) -> None:
    made = [
        {"cell_type": "code", "id": f"cell{n}", "metadata": {}, "execution_count": None, "outputs": [], "source": text}
        for n, text in enumerate(cells)
    ]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    path.write_text(json.dumps({"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}))


class Page:
    """A notebook as its reader has it: cells by number, keys and buttons."""

    def __init__(self, driver: Any, address: str, pictures: Path, cells: int) -> None:
        self.driver = driver
        self.pictures = pictures
        driver.get(address)
        there = "return document.querySelectorAll('.jp-CodeCell .cm-content').length"
        self.until(lambda: self.script(there) == cells, 300, "the notebook")
        self.until(lambda: "Idle" in self.kernel(), 300, "the kernel")
        splash = "return document.querySelectorAll('#jupyterlab-splash, .jp-Dialog').length"
        self.until(lambda: not self.script(splash), 90, "the notebook to be there alone")
        self.until(lambda: self.language(0) == "python", 90, "Python's colours")

    def script(self, text: str, *arguments: Any) -> Any:
        return self.driver.execute_script(text, *arguments)

    def until(self, done: Callable[[], Any], seconds: float, what: str) -> Any:
        try:
            return _until(done, seconds, what)
        except AssertionError:
            self.picture("failed")
            raise

    def kernel(self) -> str:
        """What the page says about its kernel: "Python 3 (ipykernel) | Idle"."""
        return str(
            self.script(
                "const e = document.querySelector('.jp-Notebook-ExecutionIndicator');"
                "return (e && e.dataset.status || '').replace(/^./, c => c.toUpperCase())"
            )
        )

    def cell(self, number: int) -> Any:
        return self.driver.find_elements("css selector", ".jp-CodeCell")[number]

    def run(self, number: int) -> None:
        """Click into a cell and press Ctrl-Enter."""
        from selenium.webdriver import ActionChains
        from selenium.webdriver.common.keys import Keys

        editor = self.cell(number).find_element("css selector", ".cm-content")
        self.script("arguments[0].scrollIntoView({block: 'nearest'})", editor)
        editor.click()
        ActionChains(self.driver).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()

    def command(self, name: str) -> None:
        """Press a button of the notebook's toolbar."""
        self.driver.find_element("css selector", f'.jp-Toolbar [data-command="{name}"]').click()

    def confirm(self) -> None:
        """Say yes to the question on top of the page."""
        self.until(lambda: self.driver.find_elements("css selector", ".jp-Dialog .jp-mod-accept"), 90, "a question")
        self.driver.find_element("css selector", ".jp-Dialog .jp-mod-accept").click()

    def type_at_start(self, number: int, text: str) -> None:
        from selenium.webdriver import ActionChains
        from selenium.webdriver.common.keys import Keys

        editor = self.cell(number).find_element("css selector", ".cm-content")
        self.script("arguments[0].scrollIntoView({block: 'nearest'})", editor)
        editor.click()
        keys = ActionChains(self.driver)
        keys.key_down(Keys.CONTROL).send_keys(Keys.HOME).key_up(Keys.CONTROL).send_keys(text).perform()

    def of(self, number: int, text: str) -> Any:
        """What a script says about `cell`, the one with that number."""
        return self.script(f"const cell = document.querySelectorAll('.jp-CodeCell')[arguments[0]]; {text}", number)

    def prompt(self, number: int) -> str:
        """ "[1]:", "[*]:" while it runs."""
        return str(self.of(number, "return cell.querySelector('.jp-InputPrompt').innerText"))

    def progress(self, number: int) -> float:
        """Where the bar below a cell is; 0 without one."""
        found = self.of(number, "const bar = cell.querySelector('progress'); return bar ? bar.value : 0")
        return float(found)

    def polyline(self, number: int) -> str:
        """The points of the time series below a cell."""
        return str(self.of(number, "const line = cell.querySelector('polyline'); return line ? line.outerHTML : ''"))

    def language(self, number: int) -> str:
        """What the editor of a cell takes its text for."""
        return str(self.of(number, "return cell.querySelector('.cm-content').dataset.language || ''"))

    def colours(self, number: int) -> dict[str, str]:
        """The colour of each piece of a cell's text that has one of its own."""
        found: dict[str, str] = self.of(
            number,
            "return Object.fromEntries(Array.from(cell.querySelectorAll('.cm-line span'))"
            ".map(span => [span.textContent, getComputedStyle(span).color]))",
        )
        return found

    def output(self, number: int) -> str:
        """HTML of what stands below a cell."""
        return str(self.of(number, "const e = cell.querySelector('.jp-OutputArea'); return e ? e.innerHTML : ''"))

    def text(self, number: int) -> str:
        return str(self.of(number, "const e = cell.querySelector('.jp-OutputArea'); return e ? e.innerText : ''"))

    def outputs(self, number: int) -> int:
        """How many outputs a cell has."""
        return len(self.cell(number).find_elements("css selector", ".jp-OutputArea-child"))

    def picture(self, name: str) -> Path:
        self.pictures.mkdir(parents=True, exist_ok=True)
        path = self.pictures / f"{name}.png"
        self.driver.save_screenshot(str(path))
        return path
