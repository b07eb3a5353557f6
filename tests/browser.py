"""What the browser tests stand on: the built book served on localhost, with MathJax from npm, and Chromium."""

import base64
import http.server
import os
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "_build" / "html"
MATHJAX = "mathjax@3.2.2"
CDN = b"https://cdn.jsdelivr.net/npm/mathjax@3/"
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
    if shutil.which("npm") is None:
        return "there is no npm on this machine, which fetches MathJax"
    if not (SITE / "index.html").exists():
        return "the book is not built: run `make book`"
    return ""


def chromium() -> str | None:
    """The browser's path."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


def fetch_mathjax() -> Path:
    """The folder of npm's MathJax, fetched once."""
    home = ROOT / "_build" / "mathjax"
    if not (home / "package" / "package.json").exists():
        home.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", MATHJAX, "--silent"], cwd=home, check=True, capture_output=True)
        with tarfile.open(next(home.glob("mathjax-*.tgz"))) as archive:
            archive.extractall(home, filter="data")
    return home / "package"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the book; pages that ask a CDN for MathJax get it from here."""

    mathjax: Path

    def translate_path(self, path: str) -> str:
        if path.startswith("/_mathjax/"):
            return str(self.mathjax / path.removeprefix("/_mathjax/").split("?")[0])
        return super().translate_path(path)

    def send_head(self):
        path = Path(self.translate_path(self.path))
        if path.suffix != ".html" or not path.exists():
            return super().send_head()
        page = path.read_bytes().replace(CDN, b"/_mathjax/")
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)
        return None

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def serve() -> http.server.ThreadingHTTPServer:
    """A server of the book on a free port of localhost; shut it down after."""
    Handler.mathjax = fetch_mathjax()
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
        self.wait("document.readyState == 'complete'")
        self.wait("!document.querySelector('script[src*=mathjax]') || window.MathJax && MathJax.startup.promise")
        self.driver.execute_async_script(
            "const done = arguments[0];Promise.resolve(window.MathJax && MathJax.startup.promise).then(() => done())"
        )
        return self.driver

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
