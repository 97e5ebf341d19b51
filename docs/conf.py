"""The documentation site: MyST pages, docstrings through autodoc, furo; `make docs` builds it."""

import re
from typing import Any

from sphinx.application import Sphinx

import streaminfer

project = "streaminfer"
author = "The streaminfer developers"
copyright = "The streaminfer developers"
version = release = streaminfer.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build"]
default_role = "py:obj"
add_module_names = False

myst_heading_anchors = 3
nb_execution_mode = "force"  # notebooks are kept without outputs
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_execution_show_tb = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases = {"ArrayLike": "ArrayLike", "Clock": "Clock"}
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"streaminfer {release}"
html_show_sourcelink = False


def _drop_embedded_signature(_app: Sphinx, _what: str, name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Cython puts `Class(arguments)` or `Class.name: type` before the docstring of a compiled class or property."""
    if lines and re.match(rf"(\w+\.)*{name.rpartition('.')[2]}(: |\()", lines[0]):
        del lines[0]


def _drop_self(
    _app: Sphinx, what: str, _name: str, _obj: Any, _options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Signatures that Cython embeds name `self`."""
    if what == "method" and signature:
        signature = re.sub(r"^\(self(, )?", "(", signature)
    return signature, returns


def _escape_types(_app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """The type `numpy.str_` of an attribute would be a link to a target `numpy.str`."""
    lines[:] = [re.sub(r"(numpy\.\w+)_(?!\w)", r"\1\\_", line) for line in lines]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", _drop_embedded_signature, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", _escape_types, priority=600)  # behind napoleon
    app.connect("autodoc-process-signature", _drop_self)
