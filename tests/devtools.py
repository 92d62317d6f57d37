"""A headless browser over the DevTools protocol's pipe: pages, what they log, ask and show."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
NO_BROWSER = f"no browser here (one of {', '.join(NAMES)}): see `make browser`"
OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-extensions", "--remote-debugging-pipe",
]  # fmt: skip
SECONDS = 120.0
# The protocol is spoken on these descriptors.
ON_3_AND_4 = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, place in zip(ends, (3, 4)):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One process of it; messages are JSON, each ended by a zero byte."""

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM is not None
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        ends = (theirs_in, theirs_out)
        command = [sys.executable, "-c", ON_3_AND_4, *map(str, ends)]
        command += [CHROMIUM, *OPTIONS, f"--user-data-dir={folder}"]
        self._process = subprocess.Popen(command, pass_fds=ends, stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        self._rest, self._last = b"", 0
        self.events: list[dict[str, Any]] = []

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        os.close(self._out)
        os.close(self._in)

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Call a method and return its result; events that come meanwhile are kept."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        message |= {"sessionId": session} if session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._read())["id"] != self._last:
            pass
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self) -> dict[str, Any]:
        """The next answer."""
        end = time.monotonic() + SECONDS
        while True:
            while b"\0" not in self._rest:
                ready, _, _ = select.select([self._in], [], [], max(end - time.monotonic(), 0))
                assert ready, "the browser says nothing"
                read = os.read(self._in, 1 << 20)
                assert read, "the browser is gone"
                self._rest += read
            line, _, self._rest = self._rest.partition(b"\0")
            message: dict[str, Any] = json.loads(line)
            if "id" in message:
                return message
            self.events.append(message)


class Page:
    """A tab with a file in it, loaded and run."""

    def __init__(self, browser: Browser, file: Path, width: int = 1400, dark: bool = False) -> None:
        self.browser = browser
        self._target = browser.send("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.send("Target.attachToTarget", targetId=self._target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.resize(width)
        self.prefer("dark" if dark else "light")
        self.send("Page.navigate", url=file.as_uri())
        self.wait_for("document.readyState === 'complete'")

    def close(self) -> None:
        self.browser.send("Target.closeTarget", targetId=self._target)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.send(method, self._session, **params)

    def resize(self, width: int, height: int = 1000) -> None:
        metrics = {"deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, **metrics)

    def prefer(self, scheme: str, media: str = "") -> None:
        """What the system asks for: light or dark, and `print` where it prints."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", media=media, features=features)

    def run(self, script: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        done = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait_for(self, claim: str) -> None:
        """Until an expression is true."""
        end = time.monotonic() + SECONDS
        while not self.run(claim):
            assert time.monotonic() < end, f"it never came true: {claim}"
            time.sleep(0.05)

    def press(self, key: str, text: str = "") -> None:
        """A key goes down and up where the focus is."""
        codes = {"Tab": 9, "Enter": 13}
        about = {"key": key, "windowsVirtualKeyCode": codes.get(key, 0)}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.send("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def picture(self, file: Path, whole: bool = True) -> None:
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))

    def heard(self, *methods: str) -> list[dict[str, Any]]:
        """What this page's events of some kinds said."""
        own = [e for e in self.browser.events if e.get("sessionId") == self._session]
        return [event["params"] for event in own if event["method"] in methods]

    @property
    def errors(self) -> list[str]:
        """What the console was told as an error or a warning, and what was thrown."""
        logged = [e["entry"]["text"] for e in self.heard("Log.entryAdded")]
        said = [str(e["args"]) for e in self.heard("Runtime.consoleAPICalled")]
        thrown = [str(e["exceptionDetails"]) for e in self.heard("Runtime.exceptionThrown")]
        return logged + said + thrown

    @property
    def asked_for(self) -> list[str]:
        """Addresses that it asked for beside its own."""
        return [e["request"]["url"] for e in self.heard("Network.requestWillBeSent")][1:]
