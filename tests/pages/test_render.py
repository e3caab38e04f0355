"""Pages: what users name their classes and files is text, and nothing in them is fetched."""

import re

from ddfnet.pages import palette
from ddfnet.pages.render import render
from tests.browser import page_data

HOSTILE = "</script><script>alert(1)</script><b>x"


def rendered():
    values = {
        "title": HOSTILE,
        "kicker": "k",
        "heading": HOSTILE,
        "lead": "l",
        "note": "n",
        "facts": [(HOSTILE, HOSTILE)],
    }
    return render(
        "explore.html.j2", scripts=("filters.js", "explore.js"), data={"images": [], "name": HOSTILE}, **values
    )


def test_markup_in_names_stays_text():
    page = rendered()
    assert page.count("<script") == page.count("</script>") == 2
    assert HOSTILE not in page
    assert "&lt;b&gt;x" in page
    assert page_data(page)["name"] == HOSTILE


def test_nothing_is_fetched():
    page = rendered()
    assert "default-src 'none'" in page
    assert not re.search(r"<link|src=|@import|url\(", page.split("<body>")[0])
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page


def luminance(color):
    """Of WCAG 2."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def test_text_can_be_read_in_light_and_dark():
    for theme in (palette.LIGHT, palette.DARK):
        assert set(theme) == set(palette.LIGHT)
        for ground in ("page", "card"):
            for text in ("ink", "muted", "correct", "wrong", "spatial", "channel", "combined", "accent"):
                light, dark = sorted((luminance(theme[ground]), luminance(theme[text])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (ground, text)


def test_ink_can_be_read_on_every_color():
    for color in (*palette.SERIES, palette.YELLOW, palette.BLACK, "#FFFFFF"):
        light, dark = sorted((luminance(color), luminance(palette.ink_on(color))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, color
