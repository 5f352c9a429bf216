"""Sphinx's settings. The pages are gathered and built by build.py; neither that nor the result needs a network."""

import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
_ABOUT = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project, release = _ABOUT["name"], _ABOUT["version"]
author = copyright = _ABOUT["authors"][0]["name"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["figures"]  # a data card among the records is a page like any other
suppress_warnings = ["toc.not_included"]

# The notebooks hold the outputs of their last run; a site shows those and runs nothing.
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 4
myst_heading_slug_func = "links.anchor"  # as JupyterLab has them, so that links hold in both
myst_dmath_double_inline = True

# MathJax from a package, beside the pages: one file with its glyphs as SVG, which needs no font and no further file.
_MATHJAX = Path(find_spec("mathjax").origin).parent / "static" / "mathjax" / "es5" / "tex-svg-full.js"
html_static_path = [str(HERE / "static"), str(_MATHJAX)]
mathjax_path = "tex-svg-full.js"
mathjax3_config = {"options": {"enableMenu": False}, "svg": {"fontCache": "global"}, "tex": {"tags": "none"}}

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature has them; twice is too much
autodoc_preserve_defaults = True
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_rtype, napoleon_use_ivar = False, True

html_theme = "sphinx_book_theme"
html_title = "sharpnb"
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_domain_indices = False
html_context = {"default_mode": "auto"}
html_show_search_summary = False  # a browser does not let a page from a file read other pages
html_theme_options = {
    "use_download_button": False, "use_fullscreen_button": False, "home_page_in_toc": True, "show_toc_level": 2,
    "navigation_with_keys": False, "secondary_sidebar_items": {"**": ["page-toc"], "scoreboard": []},
    "pygments_light_style": "a11y-light", "pygments_dark_style": "a11y-dark",
}

# Where a bar is what it says: formulas, literals, code.
_AS_IT_IS = re.compile(r"(``.*?``|:math:`.*?`|(?m:^( *)\.\. math::.*\n(?:\2 +.*\n|\s*\n)*)|(?m:^ *>>> .*$))", re.DOTALL)


def _plain_bars(app, what, name, obj, options, lines):
    """Let |x| in a docstring be a norm and not a substitution of reStructuredText."""
    text, end, out = "\n".join(lines) + "\n", 0, []
    for match in _AS_IT_IS.finditer(text):
        out += [text[end:match.start()].replace("|", "\\|"), match[0]]
        end = match.end()
    lines[:] = "".join([*out, text[end:].replace("|", "\\|")]).split("\n")


def setup(app):
    """Connect what docstrings pass through."""
    app.connect("autodoc-process-docstring", _plain_bars)
