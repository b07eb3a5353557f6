"""The built book in Chromium: light, dark, on a phone; formulas, sliders, solutions, links. After `make book`."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from bs4 import BeautifulSoup
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests import browser
from tools.contract import is_appendix
from tools.mend import problems

pytestmark = pytest.mark.browser

ROOT = browser.ROOT
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
LISTED = [chapter for part in TOC["parts"] for chapter in part["chapters"]]
PAGES = [TOC["root"], *(page["file"] for chapter in LISTED for page in (chapter, *chapter.get("sections", [])))]
CHAPTERS = [page for page in PAGES if page.startswith("notebooks/")]
TAUGHT = [page for page in CHAPTERS if not is_appendix(Path(page))]
SHOTS = ROOT / "_build" / "screenshots"
VIEWS = {"light": (1280, "light"), "dark": (1280, "dark"), "phone": (browser.PHONE, "light")}


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The served book in a browser. Without them the tests skip, but fail where CI is set."""
    if lacking := browser.missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(lacking)
    server = browser.serve()
    driver = browser.start(tmp_path_factory.mktemp("chromium"))
    try:
        yield browser.Browser(driver, f"http://127.0.0.1:{server.server_address[1]}")
    finally:
        driver.quit()
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("view", ["phone", "dark", "light"])
@pytest.mark.parametrize("page", PAGES, scope="module")
def test_page_opens_without_an_error_and_fits(book, page, view):
    book.errors()
    width, theme = VIEWS[view]
    driver = book.open(page, width, theme)
    book.picture(SHOTS / view / page.replace("/", "-"))
    assert driver.execute_script("return document.documentElement.dataset.theme") == theme
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert book.errors() == []


INTO_NUMBER = """
return [...document.querySelectorAll('article div.math')].filter(e => e.checkVisibility()).filter(e => {
  const number = e.querySelector('.eqno'), formula = e.querySelector('mjx-math');
  return number && formula && formula.getBoundingClientRect().right > number.getBoundingClientRect().left - 2;
}).map(e => e.id)
"""


@pytest.mark.parametrize("page", PAGES, scope="module")
def test_formulas_are_set(book, page):
    driver = book.open(page)
    formulas = driver.execute_script("return document.querySelectorAll('article .math').length")
    boxes = driver.execute_script("return document.querySelectorAll('article mjx-container').length")
    wrong = driver.execute_script(
        "return [...document.querySelectorAll('mjx-merror')].map(e => e.title || e.textContent)"
    )
    assert wrong == []
    assert boxes >= formulas
    assert page not in CHAPTERS or boxes > 0, "a chapter without a formula"
    assert driver.execute_script(INTO_NUMBER) == []  # on a desktop, 1280 px wide


@pytest.mark.parametrize("page", PAGES, scope="module")
def test_every_picture_has_an_alternative_text(book, page):
    driver = book.open(page)
    bare = driver.execute_script(
        "return [...document.images].filter(i => !i.hasAttribute('alt')).map(i => i.outerHTML)"
    )
    empty = driver.execute_script(
        "return [...document.querySelectorAll('article img')].filter(i => i.alt.trim().length < 8)"
        ".map(i => i.outerHTML.slice(0, 200))"
    )
    assert bare == [] and empty == []
    assert driver.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")


def state(slider):
    """What a slider shows and says."""
    img, control = slider.find_element(By.TAG_NAME, "img"), slider.find_element(By.TAG_NAME, "input")
    output = slider.find_element(By.TAG_NAME, "output")
    told = control.get_attribute("aria-valuetext")
    assert output.get_property("textContent") == told
    return img.get_attribute("src"), img.get_attribute("alt"), told


def sliders(driver):
    return driver.find_elements(By.CSS_SELECTOR, ".smlmtut-slider")


@pytest.mark.parametrize("page", CHAPTERS, scope="module")
def test_sliders_move_by_keyboard(book, page):
    driver = book.open(page)
    for slider in sliders(driver):
        control = slider.find_element(By.TAG_NAME, "input")
        assert control.accessible_name and control.aria_role == "slider"
        last = int(control.get_attribute("max"))
        driver.execute_script("arguments[0].focus()", control)
        control.send_keys(Keys.HOME)
        seen = [state(slider)]
        for _ in range(last):
            control.send_keys(Keys.ARROW_RIGHT)
            seen.append(state(slider))
        texts = [told for _, _, told in seen]
        assert len(set(texts)) == last + 1, "each step tells a value of its own"
        assert len({src for src, _, _ in seen}) > 1, "the picture never changes"
        control.send_keys(Keys.END)
        assert state(slider) == seen[-1]
        control.send_keys(Keys.HOME)
        assert state(slider) == seen[0]
    assert book.errors() == []


def test_the_book_has_sliders(book):
    counts = {page: len(sliders(book.open(page))) for page in CHAPTERS}
    assert sum(counts.values()) >= 3, counts  # two in chapter 01 and one in 03, at least


CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const channels = text => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = text;
  canvas.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
  return [r, g, b, a / 255];
};
const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
const linear = x => x / 255 <= .04045 ? x / 255 / 12.92 : ((x / 255 + .055) / 1.055) ** 2.4;
const luminance = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
const behind = element => {
  const layers = [];
  for (let e = element; e; e = e.parentElement) {
    layers.push(channels(getComputedStyle(e).backgroundColor));
    if (layers.at(-1)[3] === 1) break;
  }
  return layers.reverse().reduce((colour, layer) => over(layer, colour), [255, 255, 255]);
};
const found = {};
const walk = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const element = walk.currentNode.parentElement;
  const style = getComputedStyle(element);
  const seen = element.checkVisibility({visibilityProperty: true, opacityProperty: true});
  if (!walk.currentNode.data.trim() || !seen) continue;
  if (element.closest('mjx-container, script, .visually-hidden, .sr-only, .search-submit')) continue;
  const ground = behind(element);
  const pair = [luminance(over(channels(style.color), ground)), luminance(ground)].sort((a, b) => b - a);
  const size = parseFloat(style.fontSize), bold = style.fontWeight >= 700;
  const needed = size >= 24 || bold && size >= 18.66 ? 3 : 4.5;
  const ratio = (pair[0] + .05) / (pair[1] + .05);
  if (ratio < needed - .005) {
    const key = `${element.tagName.toLowerCase()}.${[...element.classList].join('.')} ${style.color}`;
    found[key] = found[key] || `${ratio.toFixed(2)}: ${key}: ${walk.currentNode.data.trim().slice(0, 40)}`;
  }
}
return Object.values(found);
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES, scope="module")
def test_text_is_readable(book, page, theme):
    faint = book.open(page, theme=theme).execute_script(CONTRAST)
    assert faint == []  # WCAG 2.2 AA, success criterion 1.4.3


@pytest.mark.parametrize("page", PAGES, scope="module")
def test_no_line_of_code_is_cut(book, page):
    cut = book.open(page).execute_script(
        "return [...document.querySelectorAll('article .highlight pre')]"
        ".filter(p => p.checkVisibility() && p.scrollWidth > p.clientWidth + 1)"
        ".map(p => p.textContent.split('\\n').sort((a, b) => b.length - a.length)[0])"
    )
    assert cut == []  # on a desktop, 1280 px wide; the longest line of each block


SMALL = """
const open = e => e.checkVisibility();
const wrong = [];
for (const table of [...document.querySelectorAll('article table')].filter(open)) {
  let box = table, scrolls = false;
  while ((box = box.parentElement) && box.tagName != 'MAIN')
    scrolls = scrolls || ['auto', 'scroll'].includes(getComputedStyle(box).overflowX);
  const right = table.getBoundingClientRect().right;
  if (!scrolls && right > innerWidth) wrong.push('cut: ' + table.textContent.slice(0, 60));
  for (const cell of table.querySelectorAll('td, th'))
    if (cell.textContent.trim() && parseFloat(getComputedStyle(cell).fontSize) < 11.5)
      wrong.push('small: ' + cell.textContent);
}
for (const claim of [...document.querySelectorAll('.claim')].filter(open)) {
  const name = claim.querySelector('.claim-name').getBoundingClientRect();
  const right = Math.max(...[...claim.children].map(part => part.getBoundingClientRect().right));
  if (name.width < 150 || right > innerWidth) wrong.push('claim: ' + claim.textContent.trim());
}
return wrong;
"""


@pytest.mark.parametrize("page", PAGES, scope="module")
def test_tables_and_claims_are_readable_on_a_phone(book, page):
    driver = book.open(page, browser.PHONE)
    driver.execute_script("document.querySelectorAll('details.claims').forEach(box => box.open = true)")
    wrong = driver.execute_script(SMALL)
    driver.execute_script("document.querySelectorAll('details.claims').forEach(box => box.open = false)")
    assert wrong == []


def test_the_search_form_is_sent_by_its_button(book):
    driver = book.open(PAGES[0])
    book.shown = ("", 0, "")  # the next test has to load its page
    driver.execute_script("document.querySelector('.bd-search input').value = 'photon'")
    driver.execute_script("document.querySelector('.bd-search button[type=submit]').click()")
    book.wait("location.pathname.endsWith('/search.html') && location.search == '?q=photon'")


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("notebooks/")][:1] or PAGES[:1])
def test_formulas_are_set_where_the_book_is_opened_as_files(book, page):
    """From the disk and without a network, as a reader does who was given the folder."""
    book.shown = ("", 0, "")
    book.driver.get((browser.SITE / f"{page}.html").as_uri())
    book.settle()
    boxes = book.driver.execute_script("return document.querySelectorAll('article mjx-container').length")
    assert boxes > 0
    source = book.driver.execute_script("return document.querySelector('script[src*=mathjax]').src")
    assert source.startswith("file:")
    book.driver.execute_async_script("const done = arguments[0]; document.fonts.ready.then(() => done())")
    loaded = "[...document.fonts].filter(f => f.family.startsWith('MJX') && f.status == 'loaded').length"
    assert book.driver.execute_script(f"return {loaded}") > 0, "the formulas' own fonts"


@pytest.mark.parametrize("page", TAUGHT, scope="module")
def test_solutions_are_closed_and_open_on_a_click(book, page):
    driver = book.open(page)
    solutions = driver.find_elements(By.CSS_SELECTOR, "article .solution")
    assert solutions, "a chapter without solutions"
    for solution in solutions:
        content = solution.find_element(By.CSS_SELECTOR, "section > *")
        assert not content.is_displayed(), "open at first"
        driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", solution)
        solution.find_element(By.CSS_SELECTOR, "button").click()
        browser.until(content.is_displayed, "open after a click")  # it fades in


def test_no_page_has_an_empty_heading_a_repeated_id_or_a_form_without_a_button():
    if lacking := browser.missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(lacking)
    pages = [p for p in sorted(browser.SITE.rglob("*.html")) if "_static" not in p.parts]
    wrong = {p.name: found for p in pages if (found := problems(p.read_text(encoding="utf-8")))}
    assert wrong == {} and len(pages) > len(PAGES)


def paths(driver, pattern):
    """What a pattern finds in the addresses of the page's links."""
    addresses = driver.execute_script("return [...document.querySelectorAll('a[href]')].map(a => a.href)")
    return {found[1] for address in addresses if (found := re.match(pattern, address))}


@pytest.mark.parametrize("page", CHAPTERS, scope="module")
def test_colab_and_edit_links_lead_to_files_of_the_repository(book, page):
    driver = book.open(page)
    repository, branch = CONFIG["repository"]["url"], CONFIG["repository"]["branch"]
    slug = repository.removeprefix("https://github.com/")
    colab = paths(driver, rf"https://colab\.research\.google\.com/github/{slug}/blob/{branch}/(.*)")
    edit = paths(driver, rf"{repository}/edit/{branch}/(.*)")
    files = paths(driver, rf"{repository}/blob/{branch}/([^#]*)")
    assert colab == {f"{page}.ipynb"}
    assert edit == {f"{page}.md"}
    assert [path for path in colab | edit | files if not (ROOT / path).is_file()] == []


def test_the_theme_button_leads_to_dark(book):
    driver = book.open(CHAPTERS[0] if CHAPTERS else PAGES[0])
    dark = "document.documentElement.dataset.theme == 'dark'"
    for _ in range(3):  # the button goes through light, dark and automatic
        driver.execute_script("document.querySelector('.theme-switch-button').click()")
        if driver.execute_script(f"return {dark}"):
            break
    book.wait(dark)
    background = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert max(int(part) for part in re.findall(r"\d+", background)[:3]) < 64


def test_links_from_the_colab_edition_lead_into_the_book():
    if lacking := browser.missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(lacking)
    base, ids, broken, followed = CONFIG["html"]["baseurl"].rstrip("/"), {}, [], 0
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        for page, anchor in re.findall(re.escape(base) + r"/([^)#\s]+)\.html(?:#([^)\s]+))?", text):
            file = Path(browser.SITE / f"{page}.html")
            if file not in ids:
                soup = BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser") if file.exists() else None
                ids[file] = {str(tag["id"]) for tag in soup.select("[id]")} if soup else None
            followed += 1
            if ids[file] is None or (anchor and anchor not in ids[file]):
                broken.append(f"{path.name}: {page}#{anchor}")
    assert broken == []
    assert followed >= len(CHAPTERS)
