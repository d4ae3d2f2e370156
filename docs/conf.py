"""Settings of the documentation, which ``sphinx-build docs docs/_build/html`` builds.

The build needs the extra ``docs`` and Node.js. Before the first build, run ``npm ci
--ignore-scripts`` in ``docs/``: it brings the style and fonts of KaTeX, and onnxruntime-web. The
pages load nothing from another host. The build runs every tutorial; with
``MINIDIFF_TUTORIALS=small`` that takes minutes.
"""

import shutil
import sys
from pathlib import Path

from sphinx.errors import ConfigError
from sphinxcontrib.katex import KaTeXServer

import minidiff

HERE = Path(__file__).parent
MODULES = HERE / "node_modules"
if not MODULES.is_dir():
    raise ConfigError("docs/node_modules is missing; run `npm ci --ignore-scripts` in docs/ first.")

# Sphinx reads only files below its own directory. An unchanged copy keeps its time stamp, so only
# tutorials that have changed run again.
COPIES = HERE / "tutorials"
COPIES.mkdir(exist_ok=True)
for source in sorted((HERE.parent / "tutorials").glob("*.py")):
    copy = COPIES / source.name
    if not copy.exists() or copy.read_bytes() != source.read_bytes():
        shutil.copyfile(source, copy)

project = "minidiff"
copyright = "the minidiff contributors, MIT licence"
version = release = minidiff.__version__

sys.path.insert(0, str(HERE / "_ext"))
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinxcontrib.katex",
    "play",  # docs/_ext/play.py
]
exclude_patterns = [
    "_build",
    "node_modules",
    "conf.py",
    "bench/*.py",
    "images/tour/*.py",
    "results/*.py",
    "tutorials/support.py",
    "tutorials/exercises_*.py",
]
nitpicky = True

# -- prose and notebooks
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "image/png", 0)]

# -- API
autodoc_inherit_docstrings = False  # Module describes the methods that layers override
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say shapes and units
autodoc_preserve_defaults = True  # np.float32, not <class ...>
autosummary_generate = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_param = False  # parameters that share a description stay together
napoleon_custom_sections = [("Attributes", "params_style")]
toc_object_entries_show_parents = "hide"

# -- maths, rendered while the pages are built
katex_prerender = True
katex_css_path = "katex/katex.min.css"
# On a busy machine the file socket of KaTeX's server exists before the server listens, and the
# connection is refused. Only the start by a network socket tries again.
KaTeXServer.start_server_process = KaTeXServer.start_network_socket

# -- pages
html_theme = "furo"
html_title = "minidiff"
html_static_path = ["_static"]
html_css_files = ["minidiff.css"]
html_favicon = "_static/favicon.svg"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}


def _bundle(app, exception=None):
    """Copy the style and fonts of KaTeX from node_modules into the site."""
    if exception or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    shutil.copytree(
        MODULES / "katex" / "dist" / "fonts", static / "katex" / "fonts", dirs_exist_ok=True
    )
    shutil.copyfile(MODULES / "katex/dist/katex.min.css", static / "katex/katex.min.css")


def setup(app):
    """Register the step after the build."""
    app.connect("build-finished", _bundle)
