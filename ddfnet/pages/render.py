"""Pages from templates: one file that needs no server and no network."""

from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ddfnet.pages.palette import DARK, LIGHT
from ddfnet.utils.files import to_json


def render(template: str, *, scripts: Sequence[str], data: dict[str, Any], **values: Any) -> str:
    """The text of a page.

    Names of classes and files are their users' data: the template escapes whatever it is given, `data` is embedded so
    that no text in it can end the script, and the scripts write text with `textContent` alone.

    Args:
        template: `report.html.j2` and the like, in `assets/`.
        scripts: files of `assets/` that run in the page, in this order, behind base.js.
        data: plain values and `pack`ed arrays; the scripts find them as `DATA`.
        **values: for the template.
    """
    environment = Environment(
        loader=PackageLoader("ddfnet.pages", "assets"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    # The parts that are code; the page's policy allows no script from elsewhere.
    style = Markup(_variables() + _asset(environment, "base.css"))
    script = Markup("\n".join(_asset(environment, name) for name in ("base.js", *scripts)))
    page = environment.get_template(template)
    return page.render(style=style, script=script, data=to_json(data), **values)


def _asset(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _variables() -> str:
    light, dark = ("".join(f"--{name}:{value};" for name, value in colors.items()) for colors in (LIGHT, DARK))
    return f":root{{color-scheme:light dark;{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
