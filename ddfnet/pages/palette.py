"""The colors of pages and figures. Okabe and Ito's (jfly.uni-koeln.de/color), told apart by the color-blind as well."""

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73"),
    *("#F0E442", "#0072B2", "#D55E00", "#CC79A7"),
)
GRAY = "#5B6770"

# What a color means is the same in every page and figure.
CORRECT, WRONG = BLUE, VERMILLION
SPATIAL, CHANNEL, COMBINED = VERMILLION, BLUE, "#8A4A78"  # the last is PURPLE, darker: it carries text
SERIES = (BLUE, VERMILLION, GREEN, COMBINED, ORANGE, SKY)  # for lines side by side, on white

LIGHT = {
    "page": "#F7F8F9",
    "card": "#FFFFFF",
    "ink": "#1B2229",
    "muted": "#57626D",
    "line": "#D9DFE5",
    "correct": CORRECT,
    "wrong": "#B84F00",  # VERMILLION, dark enough for text
    "spatial": "#B84F00",
    "channel": CHANNEL,
    "combined": COMBINED,
    "positive": VERMILLION,
    "negative": BLUE,
    "accent": BLUE,
}
DARK = {
    "page": "#12171C",
    "card": "#1A2128",
    "ink": "#E7ECF1",
    "muted": "#9EABB7",
    "line": "#333E48",
    "correct": SKY,
    "wrong": ORANGE,
    "spatial": ORANGE,
    "channel": SKY,
    "combined": PURPLE,
    "positive": ORANGE,
    "negative": SKY,
    "accent": SKY,
}


def ink_on(color: str) -> str:
    """Black or white, whichever is the easier to read on a color `#RRGGBB`."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]  # WCAG 2
    return BLACK if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 else "#FFFFFF"
