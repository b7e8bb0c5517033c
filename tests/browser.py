"""A headless Chromium that is driven over a pipe: the DevTools protocol, no package and no port needed."""

import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
OPTIONS = (
    "--headless=new --remote-debugging-pipe --no-first-run --no-default-browser-check --disable-gpu --disable-sync "
    "--disable-background-networking --disable-component-update --disable-extensions --disable-dev-shm-usage "
    "--hide-scrollbars --mute-audio"
).split()

# Chromium reads commands from descriptor 3 and writes answers to descriptor 4.
LAUNCH = """
import os, sys
for mine, descriptor in zip(sys.argv[1:3], (3, 4)):
    os.dup2(int(mine), descriptor)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_chromium():
    """The path of an installed Chromium or Chrome, or None; CHROMIUM=path names one."""
    named = os.environ.get("CHROMIUM")
    found = (shutil.which(name) for name in ([named] if named else NAMES))
    return next(filter(None, found), MAC if os.path.exists(MAC) else None)


class Browser:
    """One tab. ``events`` holds what the tab reported since it was last cleared, as (name, parameters)."""

    def __init__(self, executable, timeout=60):
        self.timeout, self.events, self._ids, self._buffer = timeout, [], itertools.count(1), b""
        self._messages = deque()
        self._profile = tempfile.mkdtemp(prefix="normsurvey-chromium-")
        theirs_in, self._write = high_pipe()
        self._read, theirs_out = high_pipe()
        options = [*OPTIONS, f"--user-data-dir={self._profile}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        command = [sys.executable, "-c", LAUNCH, str(theirs_in), str(theirs_out), executable, *options, "about:blank"]
        self._process = subprocess.Popen(
            command, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._session = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method, **parameters):
        """Sends one command and waits for its answer; events that arrive meanwhile are kept."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        answer = self._wait(lambda m: m.get("id") == number, method)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, url):
        """Loads a page and waits until its load event and its formulas are done."""
        for address in ("about:blank", url):  # the blank page ends what the last one was still asking for
            self.events.clear()
            self.send("Page.navigate", url=address)
            self._wait(lambda m: m.get("method") == "Page.loadEventFired", f"loading {address}")
        self.evaluate("window.MathJax?.startup?.promise?.then(() => true) ?? true")

    def evaluate(self, expression):
        """The value of a JavaScript expression, awaited."""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", expression))
        return answer["result"].get("value")

    def wait_for(self, expression, seconds=10):
        """The first true value of an expression; its last value where none comes in time."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(expression)) and time.monotonic() < end:
            time.sleep(0.05)
        return value

    def resize(self, width, height=900):
        """Sets the size of the window in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)

    def prefer(self, scheme):
        """Lets the reader's system ask for ``light`` or ``dark`` pages."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def close(self):
        """Ends Chromium and removes its profile."""
        self._session = None
        try:
            self.send("Browser.close")
            self._process.wait(10)
        except (OSError, EOFError, TimeoutError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)
        shutil.rmtree(self._profile, ignore_errors=True)

    def _wait(self, wanted, what):
        end = time.monotonic() + self.timeout
        while True:
            while self._messages:
                message = self._messages.popleft()
                if "method" in message:
                    self.events.append((message["method"], message["params"]))
                if wanted(message):
                    return message
            ready, _, _ = select.select([self._read], [], [], max(0, end - time.monotonic()))
            if not ready:
                raise TimeoutError(f"no answer from Chromium within {self.timeout} s: {what}")
            if not (chunk := os.read(self._read, 1 << 20)):
                raise EOFError(f"Chromium ended during: {what}")
            *whole, self._buffer = (self._buffer + chunk).split(b"\0")
            self._messages.extend(map(json.loads, whole))


def high_pipe():
    """A pipe whose descriptors are above those that Chromium reserves."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return high
