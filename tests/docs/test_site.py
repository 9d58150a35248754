"""The documentation's site: it builds without a warning, links lead somewhere, nothing is fetched.

Skipped where mkdocs-material is not installed; in a real browser where Chromium is.
"""

import functools
import os
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
PUBLIC = (ROOT / "tests" / "graphopt" / "public_api.txt").read_text().split()
#: Attributes by which a browser fetches something by itself.
FETCHING = {("link", "href"), ("script", "src"), ("img", "src"), ("iframe", "src")}


class Links(HTMLParser):
    """What a page names: places in it, links that a reader follows, what the browser fetches."""

    def __init__(self, text):
        super().__init__()
        self.places, self.links, self.fetched = {""}, set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.places |= {given.get("id"), given.get("name")}
        for key in ("href", "src"):
            if key in given and given.get("rel") != "canonical":
                (self.fetched if (tag, key) in FETCHING else self.links).add(given[key])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {p.relative_to(site).as_posix(): Links(p.read_text()) for p in site.rglob("*.html")}


def test_links_lead_to_a_file_and_a_place_in_it(site, pages):
    broken = []
    for name, page in pages.items():
        if name == "404.html":  # which is served for any address
            continue
        for link in page.links | page.fetched:
            if urlsplit(link).scheme in ("http", "https", "mailto", "data"):
                continue
            path, place = urldefrag(urljoin(name, link))
            path = unquote(path)
            there = (site / path).is_file()
            if not there or (path in pages and place not in pages[path].places):
                broken.append((name, link))
    assert broken == []


def test_nothing_is_fetched_from_elsewhere(site, pages):
    assert [x for p in pages.values() for x in p.fetched if urlsplit(x).netloc] == []
    styles = "".join(p.read_text() for p in site.rglob("*.css"))
    assert re.findall(r"url\([\"']?https?:[^)]*\)|@import", styles) == []


def test_formulas_are_drawn_and_files_titled(site):
    assert (site / "passes" / "svd.html").read_text().count("<math ") == 3
    assert '<span class="filename">my_passes.py</span>' in (site / "write-a-pass.html").read_text()
    assert [p.name for p in site.rglob("*.html") if "```" in p.read_text()] == []


def test_every_public_name_is_in_the_reference(site, pages):
    places = pages["api/index.html"].places | pages["api/extending.html"].places
    texts = [(site / "api" / f"{p}.html").read_text() for p in ("index", "extending")]
    told = {t for text in texts for t in re.findall(r"<code>(graphopt\.[\w.]+)</code>", text)}
    names = [n for n in PUBLIC if n.startswith("graphopt.") and not n.endswith(":")]
    assert len(names) > 90
    assert [n for n in names if n not in places | told] == []


@pytest.fixture(scope="module")
def served(site):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_reader_sees_it_well_and_asks_nobody_else(served, browser, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = browser(scheme)
    asked, said = [], []
    page.on("request", lambda r: asked.append(r.url))
    page.on("console", lambda m: said.append(m.text))
    for name in ("index", "passes/svd", "api/index", "api/extending", "cookbook/ocr"):
        page.goto(f"{served}/{name}.html")
        result = axe.run(page)
        assert result.violations_count == 0, f"{name}\n{result.generate_report()}"
    assert [u for u in asked if not u.startswith((served, "data:", "blob:"))] == []
    assert said == []


def test_it_is_searched(served, browser):
    page = browser()
    page.goto(f"{served}/index.html")
    box = page.locator("input.md-search__input").first
    box.press_sequentially("equalization")  # the theme listens to keys, not to the field's value
    # what is found for the first letters is replaced as more are typed
    page.wait_for_function(
        "document.querySelector('.md-search-result__link')?.href.includes('int8')"
    )
