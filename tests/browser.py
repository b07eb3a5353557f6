"""What the browser tests stand on: the built book served on localhost, and Chromium without a network."""

import base64
import http.server
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "_build" / "html"
PHONE = 390  # px, the width of a common phone
TALLEST = 8000  # px, the height of one screenshot; a longer page gets several
KNOWN = ("'THEBE_JS_URL' has already been declared",)  # Jupyter Book and the theme both load sphinx-thebe
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-device-scale-factor=1",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # what needs the network must not matter here
]


def missing() -> str:
    """What these tests need and this machine lacks; "" for nothing."""
    if chromium() is None:
        return "there is no Chromium on this machine"
    if not (SITE / "index.html").exists():
        return "the book is not built: run `make book`"
    if not (SITE / "_static" / "mathjax").exists():
        return "the book was built without npm and takes MathJax from the network"
    return ""


def chromium() -> str | None:
    """The browser's path."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the book as it lies in its folder."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def serve() -> http.server.ThreadingHTTPServer:
    """A server of the book on a free port of localhost; shut it down after."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *request: Handler(*request, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def start(profile: Path) -> webdriver.Chrome:
    """A headless Chromium with a fresh profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(chromium())
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    folder = os.environ.get("CHROMEWEBDRIVER")  # set on GitHub's runners
    driver = shutil.which("chromedriver") or (f"{folder}/chromedriver" if folder else None)
    return webdriver.Chrome(options=options, service=Service(executable_path=driver))


def until(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    """Wait until a condition holds; AssertionError if it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"never true: {what}"
        time.sleep(0.05)


class Browser:
    """A page of the book in Chromium, light or dark, on a desktop or a phone."""

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver, self.address = driver, address
        self.shown, self.script = ("", 0, ""), ""

    def open(self, page: str, width: int = 1280, theme: str = "light") -> webdriver.Chrome:
        """Load a page, unless it is the one that is open, and wait until its formulas are set."""
        if self.shown == (page, width, theme):
            return self.driver
        self.shown = (page, width, theme)
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        if self.script:
            self.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": self.script})
        stored = f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')"
        added = self.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": stored})
        self.script = added["identifier"]
        self.driver.get(f"{self.address}/{page}.html")
        self.settle()
        return self.driver

    def settle(self) -> None:
        """Wait until the page is loaded and its formulas are set."""
        self.wait("document.readyState == 'complete'")
        self.wait("!document.querySelector('script[src*=mathjax]') || window.MathJax && MathJax.startup.promise")
        self.driver.execute_async_script(
            "const done = arguments[0];Promise.resolve(window.MathJax && MathJax.startup.promise).then(() => done())"
        )

    def wait(self, condition: str, seconds: float = 20) -> None:
        """Wait until a JavaScript expression is true; AssertionError if it never is."""
        until(lambda: self.driver.execute_script(f"return Boolean({condition})"), condition, seconds)

    def errors(self) -> list[str]:
        """Errors that the pages' own scripts and files caused since the last call."""
        entries = self.driver.get_log("browser")
        ours = [e["message"] for e in entries if e["level"] == "SEVERE" and e["message"].startswith(self.address)]
        return [message for message in ours if not any(known in message for known in KNOWN)]

    def picture(self, path: Path) -> None:
        """Save the whole page as path-1.png and so on."""
        height = self.driver.execute_script("return document.documentElement.scrollHeight")
        width = self.driver.execute_script("return document.documentElement.clientWidth")
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob(f"{path.name}-*.png"):
            old.unlink()
        for part, top in enumerate(range(0, height, TALLEST), start=1):
            clip = {"x": 0, "y": top, "width": width, "height": min(TALLEST, height - top), "scale": 1}
            shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
            (path.parent / f"{path.name}-{part}.png").write_bytes(base64.b64decode(shot["data"]))
