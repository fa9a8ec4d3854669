"""The report: what it says, and that it stays itself whatever a solver prints; in a real browser."""

from __future__ import annotations

import html.parser
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_runs import EVIL, SMALL, task_end, write_large, write_run

import keystone_mpi
from keystone_mpi.analysis.report import facts, render_report
from keystone_mpi.core.model import TaskState

MANY = """
[sweep]
name = "many"
command = ["echo", "{i}", "{j}"]
[params]
i = { range = [0, 100, 1] }
j = { range = [0, 100, 1] }
"""


@pytest.fixture(scope="module")
def evil_page(evil_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with keystone_mpi.open_run(evil_run) as run:
        page = render_report(run)
    path = tmp_path_factory.mktemp("report") / "evil.html"
    path.write_text(page, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def many_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of 10,000 attempts on 32 workers."""
    folder = tmp_path_factory.mktemp("many")
    entries = [
        task_end(
            i, worker=1 + i % 32, start=(i // 32) * 1.05 + (i % 7) * 0.01, took=1.0,
            state=TaskState.FAILURE if i % 97 == 0 else TaskState.SUCCESS, scalars={"v": float(i)},
        )
        for i in range(10_000)
    ]  # fmt: skip
    path = write_run(folder, MANY, entries, hosts=[f"node{n:02}" for n in range(32)], slots=1)
    with keystone_mpi.open_run(path) as run:
        page = render_report(run)
    target = folder / "many.html"
    target.write_text(page, encoding="utf-8")
    return target


class Scripts(html.parser.HTMLParser):
    """Collects the page's elements as a browser's parser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_markup_of_users_stays_text(evil_page: Path) -> None:
    text = evil_page.read_text(encoding="utf-8")
    parser = Scripts()
    parser.feed(text)
    scripts = [attributes for tag, attributes in parser.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}]
    assert not {"img", "iframe", "object", "embed"} & {tag for tag, _ in parser.tags}
    assert not [name for _, attributes in parser.tags for name in attributes if name.startswith("on")]
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert "<" not in data.group(1)
    assert "\u2028" not in data.group(1)
    assert set(json.loads(data.group(1))) == {"timeline", "utilisation", "durations", "scatter"}


def test_it_loads_nothing(evil_page: Path) -> None:
    text = evil_page.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#|data:,)""", text)
    assert "@import" not in text
    assert "url(" not in text
    assert not re.search(r"\b(?:fetch|XMLHttpRequest|WebSocket|sendBeacon|import)\s*\(", text)


def test_a_large_run_is_shown_as_density_and_sample(tmp_path: Path) -> None:
    with keystone_mpi.open_run(write_large(tmp_path, 300)) as run:
        assert facts.timeline(run)["kind"] == "density"
        points = facts.scatter(run)
        assert len(points["task"]) <= facts.POINTS
        assert points["of"] == 90_000
        page = render_report(run)
    assert "90,000 attempts as density" in page
    assert len(page) < 2_000_000


def test_a_run_of_which_nothing_ran_has_a_report_too(tmp_path: Path) -> None:
    with keystone_mpi.open_run(write_run(tmp_path, SMALL, [], closed="interrupted")) as run:
        page = render_report(run)
    assert "stopped with work left" in page
    assert 'id="timeline"' not in page
    assert 'id="provenance"' in page


# ------------------------------------------------------------------- the browser


def _program(*names: str) -> str | None:
    return next((path for path in map(shutil.which, names) if path), None)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start headless Chromium; without one the tests are skipped by name (CI has it)."""
    chromium, driver = _program("chromium", "chromium-browser", "google-chrome"), _program("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    folder = tmp_path_factory.mktemp("chromium")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-breakpad",
        "--no-first-run", f"--user-data-dir={folder / 'profile'}", "--window-size=1200,900",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    environment = {**os.environ, "TMPDIR": str(folder), "HOME": str(folder)}
    chrome = webdriver.Chrome(options=options, service=Service(driver, env=environment))
    chrome.set_page_load_timeout(30)
    yield chrome
    chrome.quit()


def opened(browser: Any, page: Path) -> Any:
    """Load a page and wait until its script is done."""
    browser.get_log("browser")
    browser.get(page.as_uri())
    assert browser.execute_script("return document.documentElement.dataset.ready") == "yes"
    return browser


def text_of(browser: Any, selector: str) -> str:
    return str(browser.execute_script("return document.querySelector(arguments[0]).textContent", selector))


def gantt(browser: Any) -> dict[str, float]:
    """What the timeline says of its last frame, after the next one was drawn."""
    seen = browser.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame("
        "() => done({...document.getElementById('gantt').dataset})))"
    )
    return {name: float(value) for name, value in seen.items()}


def press(browser: Any, *keys: str) -> None:
    from selenium.webdriver.common.by import By

    canvas = browser.find_element(By.ID, "gantt")
    canvas.send_keys(*keys)


def severe(browser: Any) -> list[str]:
    return [
        entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
    ]


def test_browser_shows_the_right_counts_and_no_error(browser: Any, evil_page: Path) -> None:
    opened(browser, evil_page)
    assert "9" in text_of(browser, "#tile-tasks dd")
    assert text_of(browser, "#tile-succeeded dd").startswith("6")
    assert text_of(browser, "#tile-failed dd").startswith("3")
    assert text_of(browser, "#state") == "complete"
    assert "keystone-mpi rerun" in text_of(browser, "#failures")
    assert "solve <2.1>" in text_of(browser, "#provenance")
    assert "abc123, with changes that are not committed" in text_of(browser, "#provenance")
    assert browser.execute_script("return document.querySelectorAll('#scatter-chart circle').length") == 6
    assert browser.execute_script("return document.querySelectorAll('#durations-chart .bar').length") > 0
    assert severe(browser) == []


def test_browser_shows_scripts_as_text(browser: Any, evil_page: Path) -> None:
    opened(browser, evil_page)
    assert browser.execute_script("return window.pwned") is None
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0
    shown = text_of(browser, "#failures")
    assert "</script><script>window.pwned = 1</script><!--" in shown
    assert "\u241b[31m" in shown  # an escape character is made visible
    assert "evil <img src=x onerror=alert(1)> &amp;" in browser.title
    assert EVIL.split("<img")[0] in shown
    # Every drop-down, so that every label went through the charts too.
    for value in browser.execute_script(
        "return [...document.querySelectorAll('#scatter-x option')].map(o => o.value)"
    ):
        browser.execute_script(
            "const s = document.getElementById('scatter-x'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('change'))",
            value,
        )
    assert browser.execute_script("return window.pwned") is None
    assert severe(browser) == []


def test_browser_timeline_responds_and_is_fluid(browser: Any, many_page: Path) -> None:
    opened(browser, many_page)
    whole = gantt(browser)
    assert whole["from"] == 0
    assert whole["drawn"] > 2000
    press(browser, "+", "+", "+", "+")
    closer = gantt(browser)
    assert closer["to"] - closer["from"] == pytest.approx((whole["to"] - whole["from"]) * 0.6**4, rel=1e-6)
    assert closer["drawn"] < whole["drawn"]
    from selenium.webdriver.common.keys import Keys

    press(browser, Keys.ARROW_RIGHT)
    assert gantt(browser)["from"] > closer["from"]
    press(browser, "n")
    assert text_of(browser, "#gantt-tip").startswith("task ")
    press(browser, "0")
    assert gantt(browser)["to"] == whole["to"]
    browser.execute_script(
        "const c = document.getElementById('gantt'), b = c.getBoundingClientRect();"
        "c.dispatchEvent(new WheelEvent('wheel', {deltaY: -300, ctrlKey: true, clientX: b.left + b.width / 2,"
        " clientY: b.top + 20, cancelable: true}))"
    )
    assert gantt(browser)["to"] < whole["to"]
    browser.execute_script("document.getElementById('gantt-all').click()")
    # 40 frames, each at another zoom: how long drawing takes, whatever else the machine does.
    frames = browser.execute_async_script(
        "const done = arguments[0], c = document.getElementById('gantt'), took = []; let n = 0;"
        "const press = (key) => c.dispatchEvent(new KeyboardEvent('keydown', {key}));"
        "const next = () => { press(n % 20 < 10 ? '+' : '-'); requestAnimationFrame(() => {"
        " took.push(+c.dataset.frameMs); if (++n < 40) next(); else done(took); }); }; next();"
    )
    frames.sort()
    assert frames[len(frames) // 2] < 33, frames
    assert severe(browser) == []


def test_browser_dark_light_print_and_narrow(browser: Any, evil_page: Path) -> None:
    opened(browser, evil_page)

    def background() -> str:
        return str(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))

    light = background()
    browser.execute_script("document.getElementById('theme').click()")
    dark = background()
    assert light != dark
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    opened(browser, evil_page)
    assert background() == dark
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert background() == "rgb(255, 255, 255)"
    assert browser.execute_script("return getComputedStyle(document.querySelector('nav')).display") == "none"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    browser.set_window_size(500, 900)
    try:
        opened(browser, evil_page)
        wide = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0
    finally:
        browser.set_window_size(1200, 900)
    assert severe(browser) == []


def test_browser_is_usable_by_keyboard_and_has_contrast(browser: Any, evil_page: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    opened(browser, evil_page)
    visited = []
    for _ in range(40):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        visited.append(
            browser.execute_script(
                "const e = document.activeElement; return e.id || e.textContent.trim().slice(0, 20)"
            )
        )
    for wanted in ("theme", "gantt", "gantt-in", "scatter-x", "scatter-logy"):
        assert wanted in visited, visited
    closed = browser.find_elements(By.CSS_SELECTOR, "#failures details:not([open]) summary")
    closed[0].send_keys(Keys.ENTER)
    assert closed[0].find_element(By.XPATH, "..").get_attribute("open") is not None
    for theme in ("light", "dark"):
        colours = browser.execute_script(
            "document.documentElement.dataset.theme = arguments[0];"
            "const s = getComputedStyle(document.documentElement);"
            "return ['--ink', '--soft', '--accent', '--fail', '--warn', '--ok', '--time',"
            " '--card', '--page', '--code']"
            ".map(n => s.getPropertyValue(n).trim())",
            theme,
        )
        *foreground, card, page, code = colours
        for colour in foreground[:2]:
            assert min(contrast(colour, ground) for ground in (card, page, code)) >= 4.5, (theme, colour)
        for colour in foreground[2:5]:
            assert contrast(colour, card) >= 4.5, (theme, colour)
        for colour in foreground[5:]:
            assert contrast(colour, card) >= 3.0, (theme, colour)


def contrast(one: str, other: str) -> float:
    """WCAG contrast of two #rrggbb colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
