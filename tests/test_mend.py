"""Three faults of default builds are found and mended, and nothing else is touched."""

import pytest

from tools.mend import mend, mend_site, problems

PAGE = """<html><head><script>const a = '<p id="same"></p>';</script></head><body>
<form class="bd-search" action="search.html"><i></i><input type="search" name="q"/>
<button type="button">clear</button></form>
<button>outside</button><h1>Title<a href="#x">#</a></h1><h1></h1><h2> &nbsp;
</h2><h3><img src="a.png" alt="a picture"/></h3>
<section id="same"><p id="same-2">one</p></section><section id="same">two</section><div class="x" id="same">three</div>
</body></html>"""


def test_the_faults_of_a_default_build_are_found():
    assert problems(PAGE) == [
        "3 elements have the id 'same'",
        "a heading has no text",
        "a heading has no text",
        "a form has no button that sends it",
    ]


def test_a_mended_page_has_none_and_keeps_its_words():
    mended = mend(PAGE)
    assert problems(mended) == []
    assert mend(mended) == mended
    for kept in ("""'<p id="same"></p>'""", "<h1>Title", 'alt="a picture"', '<p id="same-2">one', "two", "three"):
        assert kept in mended
    assert '<section id="same">' in mended and '<section id="same-3">' in mended and 'id="same-4">three' in mended


@pytest.mark.parametrize(
    "button", ["<button>go</button>", '<input type="submit"/>', '<button type="submit">go</button>']
)
def test_a_form_that_can_be_sent_stays_as_it_is(button):
    page = f"<form><input name='q'/>{button}</form>"
    assert problems(page) == [] and mend(page) == page


def test_a_site_is_mended_but_for_its_static_files(tmp_path):
    (tmp_path / "_static").mkdir()
    for name in ("a.html", "_static/b.html"):
        (tmp_path / name).write_text(PAGE, encoding="utf-8")
    assert mend_site(tmp_path) == 1
    assert problems((tmp_path / "a.html").read_text(encoding="utf-8")) == []
    assert (tmp_path / "_static" / "b.html").read_text(encoding="utf-8") == PAGE
