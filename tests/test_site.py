"""The built book, every page of it: links, sizes, and what a reader's browser makes of it."""

import functools
import http.server
import json
import os
import re
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest
from browser import Browser, find_chromium

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_tools"))
from project import HTML, chapters, metadata  # noqa: E402

MB, KB = 1_000_000, 1_000
COLAB = "https://colab.research.google.com/github/"


def pages():
    """Every HTML page of the site, relative to its root."""
    return sorted(path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html") if "_static" not in path.parts)


class Reader(HTMLParser):
    """Collects from one page: anchors, links, what it loads, and images without a description."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.loads, self.undescribed = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors.update(value for key, value in attributes if key == "id" or (tag, key) == ("a", "name"))
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag == "link" and found.get("rel") in ("stylesheet", "preload", "icon"):
            self.loads.append(found["href"])
        if tag in ("script", "img", "iframe", "source", "video") and found.get("src"):
            self.loads.append(found["src"])
        if tag == "img" and "alt" not in found:
            self.undescribed.append(found.get("src"))


@pytest.fixture(scope="module")
def site():
    """{page: what its HTML says}."""
    if not (HTML / "index.html").exists():
        missing = "the book is not built: run `make book`"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    return {page: Reader((HTML / page).read_text()) for page in pages()}


def is_outside(address):
    """Whether an address points to another host."""
    return bool(urlsplit(address).scheme or urlsplit(address).netloc) and not address.startswith("data:")


def test_internal_links_and_anchors_resolve(site):
    broken = []
    for page, reader in site.items():
        for link in filter(lambda link: not is_outside(link) and not link.startswith("data:"), reader.links):
            path, anchor = urldefrag(urljoin(page, unquote(link)))
            target = path or page
            if not (HTML / target).is_file():
                broken.append(f"{page}: {link}")
            elif anchor and target in site and anchor not in site[target].anchors:
                broken.append(f"{page}: {link} (no such anchor)")
    assert not broken, "\n".join(broken)


def test_nothing_is_loaded_from_another_host(site):
    outside = [f"{page}: {load}" for page, reader in site.items() for load in reader.loads if is_outside(load)]
    assert not outside, "\n".join(outside)


def test_every_image_is_described(site):
    assert not {page: reader.undescribed for page, reader in site.items() if reader.undescribed}


def test_every_colab_link_opens_a_notebook_of_the_repository(site):
    facts = metadata()
    prefix = COLAB + facts["repository"].removeprefix("https://github.com/") + f"/blob/{facts['revision']}/"
    links = {page: [link for link in reader.links if link.startswith(COLAB)] for page, reader in site.items()}
    for page, found in links.items():
        for link in found:
            assert link.startswith(prefix), f"{page}: {link} is not below {prefix}"
            assert (ROOT / link.removeprefix(prefix)).is_file(), f"{page}: {link} has no notebook in the repository"
    for chapter in chapters():
        page = chapter.with_suffix(".html").as_posix()
        assert prefix + chapter.as_posix() in links[page], f"{page} has no Colab button"


def test_every_figure_of_a_chapter_can_be_downloaded_as_svg(site):
    for chapter in chapters():
        page = chapter.with_suffix(".html").as_posix()
        figures = [load for load in site[page].loads if "_images/" in load]
        vectors = [link for link in site[page].links if link.endswith(".svg")]
        assert len(vectors) == len(figures), page
        assert all("<svg" in (HTML / urljoin(page, link)).read_text()[:2000] for link in vectors), page


def weight(page, reader):
    """Bytes of a page and of the pictures that only it shows."""
    pictures = {(HTML / urljoin(page, load)) for load in reader.loads if "_images/" in load}
    return sum(path.stat().st_size for path in {HTML / page, *pictures})


def test_pages_are_light(site):
    static = [path for path in (HTML / "_static").rglob("*") if path.is_file()] + [HTML / "searchindex.js"]
    assert sum(path.stat().st_size for path in static) <= 12 * MB
    for page, reader in site.items():
        if page.startswith("notebooks/"):
            assert weight(page, reader) <= 1 * MB, page
        if page.startswith("book/cards/"):
            assert weight(page, reader) <= 60 * KB, page


# In a browser. A page is opened once; light and dark, wide and narrow are looked at without loading it again.

LOOK = """(() => {
  const nodes = [...document.querySelectorAll('.math')];
  const prose = ['p', 'li', 'td', 'dd', 'h1', 'h2', 'h3', 'figcaption'].map(tag => `main ${tag}`).join();
  const text = [...document.querySelectorAll(prose)]
    .filter(e => !e.closest('pre, code')).map(e => e.innerText).join('\\n');
  return {math: nodes.length, unrendered: nodes.filter(n => !n.querySelector('mjx-container')).map(n => n.textContent),
          errors: [...document.querySelectorAll('mjx-merror, [data-mjx-error]')].map(n => n.textContent),
          raw: (text.match(/\\\\[(\\[].{0,40}|\\$\\$.{0,40}|\\\\(frac|mathbf|sigma|mu)\\b.{0,20}/) || [''])[0]};
})()"""

# The lowest contrast of any text in the page's body, by the formula of WCAG 2.2 (1.4.3); colours may be transparent.
CONTRAST = """(() => {
  const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1});
  const pen = canvas.getContext('2d', {willReadFrequently: true});
  const known = new Map();
  const parse = c => { pen.clearRect(0, 0, 1, 1); pen.fillStyle = c; pen.fillRect(0, 0, 1, 1);
                       const d = pen.getImageData(0, 0, 1, 1).data; return [d[0], d[1], d[2], d[3] / 255]; };
  const rgba = c => known.get(c) ?? known.set(c, parse(c)).get(c);
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
                      .reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
  const paper = e => { const layers = [];
    for (; e && layers.at(-1)?.[3] !== 1; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]); };
  let worst = [21, ''];
  for (const e of document.querySelectorAll('main article *, .bd-sidebar-primary a, .bd-header a, footer p')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility({opacityProperty: true})) continue;
    if (e.closest('svg, script, style, .headerlink, mjx-container')) continue;
    const below = paper(e), a = light(over(rgba(getComputedStyle(e).color), below)), b = light(below);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const name = `${e.tagName.toLowerCase()}.${e.className}: ${e.textContent.trim().slice(0, 40)}`;
    if (ratio < worst[0]) worst = [ratio, name];
  }
  return worst;
})()"""

# Colours that are still fading from light to dark are not those that a reader sees.
STILL = "document.head.insertAdjacentHTML('beforeend', '<style>* {transition: none !important}</style>')"

COMPLAINTS = {
    "Runtime.exceptionThrown": lambda p: p["exceptionDetails"].get("exception", {}).get("description") or str(p),
    "Runtime.consoleAPICalled": lambda p: json.dumps(p["args"]) if p["type"] in ("error", "assert") else "",
    "Log.entryAdded": lambda p: str(p["entry"]) if p["entry"]["level"] == "error" else "",
}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the site without a line per request; what all pages share is asked for once."""

    protocol_version = "HTTP/1.1"

    def end_headers(self):
        self.send_header("Cache-Control", "max-age=3600")
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(site):
    """The site's address on this machine while the tests of this file run."""
    handler = functools.partial(Handler, directory=str(HTML))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def tab():
    """A browser tab, shared by the tests of this file."""
    executable = find_chromium()
    if executable is None:
        missing = "no Chromium or Chrome found: on Debian, apt-get install chromium; elsewhere, CHROMIUM=<its path>"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    tab = Browser(executable)
    yield tab
    tab.close()


def complaints(tab):
    """What the page wrote to the console as an error, or could not load."""
    found = (COMPLAINTS[name](parameters) for name, parameters in tab.events if name in COMPLAINTS)
    return [text for text in found if text]


def requests(tab):
    """Addresses that the page asked for."""
    return [p["request"]["url"] for name, p in tab.events if name == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def seen(site, address, tab):
    """{page: what a reader sees}, each page loaded once; the root only leads to the landing page."""
    found = {}
    for page in site.keys() - {"index.html"}:
        tab.prefer("light")
        tab.resize(1280)
        tab.open(address + page)
        view = tab.evaluate(LOOK)
        view["complaints"] = complaints(tab)
        view["outside"] = [url for url in requests(tab) if not url.startswith((address, "data:", "blob:"))]
        tab.evaluate(STILL)
        for scheme in ("light", "dark"):
            tab.evaluate(f"document.documentElement.dataset.theme = '{scheme}'")
            view[scheme] = tab.evaluate(CONTRAST)
        tab.resize(400)
        view["width"] = tab.evaluate("document.documentElement.scrollWidth")
        found[page] = view
    return found


def assert_no_page(seen, fault):
    """No page has the fault; else one line for each that has it."""
    told = [f"{page}: {fault(view)}" for page, view in seen.items() if fault(view)]
    assert not told, "\n".join(told)


def test_math_is_rendered(seen):
    assert sum(view["math"] for view in seen.values()) > 100
    assert_no_page(seen, lambda view: view["unrendered"] or view["errors"] or view["raw"])


def test_no_console_error(seen):
    assert_no_page(seen, lambda view: view["complaints"])


def test_no_request_leaves_the_site(seen):
    assert_no_page(seen, lambda view: view["outside"])


def test_no_horizontal_scroll_on_a_phone(seen):
    assert_no_page(seen, lambda view: view["width"] > 400 and f"{view['width']} px wide at 400 px")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible(seen, scheme):
    assert_no_page(seen, lambda view: view[scheme][0] < 4.5 and f"contrast {view[scheme][0]:.1f} of {view[scheme][1]}")


def test_dark_follows_the_system(tab, address):
    tab.prefer("dark")
    tab.open(address + "book/index.html")
    tab.evaluate("localStorage.clear()")
    tab.open(address + "book/index.html")
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    tab.prefer("light")


def test_root_leads_to_the_landing_page(tab, address):
    tab.open(address)
    assert tab.wait_for("location.pathname === '/book/index.html' && document.readyState === 'complete'")


def test_search_finds_a_method(tab, address):
    tab.open(address + "search.html?q=IterNorm")
    assert tab.wait_for("document.querySelectorAll('#search-results li a').length"), "no page is found for IterNorm"
    found = tab.evaluate("[...document.querySelectorAll('#search-results li a')].map(a => a.href)")
    assert any(re.search(r"cards/IterNorm\.html", link) for link in found), found


@pytest.mark.parametrize("page", ["book/index.html", "notebooks/1_taxonomy/why_normalize.html", "book/catalogue.html"])
def test_pages_also_read_from_the_disk(site, tab, page):
    tab.open((HTML / page).as_uri())
    view = tab.evaluate(LOOK)
    assert not complaints(tab)
    assert not [url for url in requests(tab) if not url.startswith(("file://", "data:", "blob:"))]
    assert not view["unrendered"] and not view["errors"] and not view["raw"]
