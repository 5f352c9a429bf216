"""Run a notebook in a real JupyterLab: python site/check_lab.py [--screenshot FILE].

JupyterLab is started on a copy; a headless Chromium opens notebook 07 there, runs all cells from the top, and moves
each slider of the panel: no cell may fail, none may be left out, and the picture must change.
"""

import argparse
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from browser import chromium, missing

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK, PANEL = "07_wsam_toy", "toy.panel()"
RUN_ALL = """const done = arguments[arguments.length - 1], app = window.jupyterapp;
(async () => {
  const widget = app.shell.currentWidget;
  await widget.revealed; await widget.sessionContext.ready;
  await app.commands.execute('notebook:run-all-cells');
  done(widget.content.widgets.filter(cell => cell.model.type === 'code').map(cell => ({
    id: cell.model.id, source: cell.model.sharedModel.source, count: cell.model.executionCount,
    error: cell.model.outputs.toJSON().filter(o => o.output_type === 'error')
      .map(o => `${o.ename}: ${o.evalue}`).join() })));
})().catch(error => done([{ id: 'JupyterLab', source: '', count: null, error: String(error) }]));"""
SHOW = """const done = arguments[arguments.length - 1], content = window.jupyterapp.shell.currentWidget.content;
const index = content.widgets.findIndex(cell => cell.model.id === arguments[0]);
content.activeCellIndex = index;
content.scrollToItem(index, 'start').then(() => done(index));"""


@contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """Serve a copy of the notebook under ``folder``; yield the address that opens it."""
    (folder / "notebooks").mkdir()
    shutil.copy2(ROOT / "notebooks" / f"{NOTEBOOK}.ipynb", folder / "notebooks")
    quiet = folder / "SETTINGS" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}', encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, own = secrets.token_hex(16), {f"JUPYTER_{kind}_DIR": str(folder / kind) for kind in ("CONFIG", "RUNTIME")}
    own |= {f"JUPYTERLAB_{kind}_DIR": str(folder / kind) for kind in ("SETTINGS", "WORKSPACES")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
               f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}",
               "--LabApp.expose_app_in_browser=True"]
    log = (folder / "jupyterlab.log").open("w", encoding="utf-8")
    server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log,
                              env={**os.environ, **own, "SHARPNB_ROOT": str(folder), "PYTHONPATH": str(ROOT)})
    try:
        for _ in range(240):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/lab/tree/notebooks/{NOTEBOOK}.ipynb?token={token}"
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def cell_problems(cells: list[dict]) -> list[str]:
    """Return a sentence for each cell that failed, or was not executed in its turn."""
    problems = [f"cell {cell['id']} failed: {cell['error']}" for cell in cells if cell["error"]]
    counts = [cell["count"] for cell in cells]
    if counts != list(range(1, len(cells) + 1)):
        problems.append(f"cells were not executed from top to bottom: counts {counts}")
    return problems


def panel_problems(browser, cell: str) -> list[str]:
    """Move each slider of the panel; return a sentence for each that leaves the picture as it was."""
    browser.execute_async_script(SHOW, cell)

    def picture(_) -> str:
        found = browser.find_elements(By.CSS_SELECTOR, "img.widget-image")
        return found[0].get_attribute("src") if found else ""

    wait, problems = WebDriverWait(browser, 60), []
    wait.until(picture, "the panel shows no picture")
    handles = browser.find_elements(By.CSS_SELECTOR, ".widget-slider .noUi-handle")
    if len(handles) < 5:
        problems.append(f"the panel has {len(handles)} sliders, not 5")
    for number, handle in enumerate(handles):
        before = picture(browser)
        handle.send_keys(Keys.ARROW_LEFT * 3)
        try:
            wait.until(lambda shown, before=before: picture(shown) not in ("", before))
        except Exception as error:
            problems.append(f"slider {number} changes nothing ({type(error).__name__})")
    return problems


def main() -> int:
    """Check, print what is wrong, and return 1 if anything is."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--screenshot", type=Path, help="also save a picture of the panel there")
    file = parser.parse_args().screenshot
    if said := missing():
        print(said)
        return 0
    with chromium() as browser, tempfile.TemporaryDirectory() as folder, jupyterlab(Path(folder)) as address:
        browser.set_script_timeout(300)
        browser.get(address)
        ready = "return !!window.jupyterapp?.shell?.currentWidget?.content?.widgets?.length"
        WebDriverWait(browser, 120).until(lambda shown: shown.execute_script(ready), "JupyterLab did not open")
        cells = browser.execute_async_script(RUN_ALL)
        problems = cell_problems(cells)
        panel = next(cell["id"] for cell in cells if cell["source"].strip() == PANEL)
        problems += panel_problems(browser, panel)
        if file:
            browser.save_screenshot(str(file))
    print(*problems, sep="\n", end="\n" if problems else "")
    print(f"JupyterLab, {NOTEBOOK}: {len(cells)} cells and the panel: {len(problems)} problems")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
