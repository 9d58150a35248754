"""The page in a real browser: Chromium, driven by Playwright; skipped where either is missing."""

import pytest

MIDDLE = """() => {
  const box = document.querySelector(".pane canvas").getBoundingClientRect();
  return [box.left + box.width / 2, box.top + box.height / 2];
}"""


@pytest.fixture
def opened(run, tmp_path, browser):
    """Open the page of the run in a colour scheme; what it asked for and said is kept."""
    path = tmp_path / "page.html"
    path.write_bytes(run[1])

    def open_(scheme="light", at=path):
        page = browser(scheme)
        page.asked, page.said = [], []
        page.on("request", lambda r: page.asked.append(r.url))
        page.on("console", lambda m: page.said.append(m.text))
        page.on("pageerror", lambda e: page.said.append(str(e)))
        page.goto(at.as_uri())
        page.wait_for_function("document.documentElement.dataset.ready")
        return page

    return open_


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_asks_for_nothing_and_says_nothing(opened, scheme):
    page = opened(scheme)
    assert len(page.asked) == 1
    assert page.said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(opened, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = opened(scheme)
    page.locator("details").first.evaluate("d => { d.open = true; }")
    result = axe.run(page)
    assert result.violations_count == 0, result.generate_report()


def test_a_node_under_the_mouse_lights_its_counterpart(opened):
    page = opened()
    page.locator(".pane canvas").first.scroll_into_view_if_needed()
    page.locator("#find").fill("h3")
    page.keyboard.press("Enter")  # which puts it into the middle
    page.mouse.move(*page.evaluate(MIDDLE))
    tip = page.locator(".tip")
    tip.wait_for()
    assert tip.inner_text().startswith("MatMul\nh3\n")
    assert "by\nfuse, int8" in tip.inner_text()
    page.mouse.move(5, 5)
    tip.wait_for(state="hidden")


def test_a_click_opens_a_block_and_the_keyboard_walks(opened):
    page = opened()
    page.locator(".pane canvas").first.focus()
    said = []
    for _ in range(4):
        page.keyboard.press("ArrowDown")
        said.append(page.locator("#said").inner_text())
    assert len(set(said)) == 4
    page.keyboard.press("Escape")
    page.keyboard.press("0")
    page.locator("#unfold").click()
    page.locator("#unfold").click()


def test_the_slider_goes_through_the_passes(opened):
    page = opened()
    slider = page.locator("#stage")
    labels = [page.locator("#pane-1").inner_text()]
    slider.focus()
    for _ in range(2):
        page.keyboard.press("ArrowLeft")
        labels.append(page.locator("#pane-1").inner_text())
    assert labels == ["int8", "fuse", "prune"]


def test_a_node_is_found_by_its_name(opened):
    page = opened()
    page.locator("#find").fill("h3")
    page.keyboard.press("Enter")
    assert page.locator("#said").inner_text().startswith("MatMul, h3")


def test_the_table_sorts_filters_and_points_to_the_graph(opened):
    page = opened()
    table = page.locator("#layers")
    names = table.locator("tbody th")
    table.locator("thead button").first.click()
    first = names.first.inner_text()
    table.locator("thead button").first.click()
    assert names.first.inner_text() > first
    table.locator("input").fill("MatMul")
    assert names.count() == 9
    table.locator("select").select_option("same")
    assert names.count() < 9
    table.locator("select").select_option("all")
    names.first.click()
    assert names.first.inner_text() in page.locator("#said").inner_text()


def test_it_prints(opened):
    page = opened()
    page.emulate_media(media="print")
    assert page.locator(".tools").first.is_hidden()
    assert len(page.pdf()) > 20_000
