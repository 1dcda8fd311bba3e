"""How Sphinx builds the documentation: `python -m sphinx -W --keep-going -b html -c docs . build/documentation`.

The sources are those of the whole repository, so that links between the guide, results, examples and model cards lead
to the same places in the repository and on the site.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax tells of every file while the gallery runs

project = "optax_introspect"
root_doc = "docs/index"
include_patterns = ["docs/**", "results/*.md", "checkpoints/*/README.md"]
exclude_patterns = [".*", "build", "examples", "experiments", "optax_introspect", "runs", "shared", "tests"]
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]

# These examples are run, and shown with what they print and draw; the others are loops to copy from.
sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "docs/gallery",
    "filename_pattern": "",
    "ignore_pattern": r"^(?!digits|language_model|own_predictor)",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "show_memory": False,
    "show_signature": False,
    "download_all_examples": False,
    "remove_config_comments": True,
}

# Names of this package must be found; others are not looked for, as that would need a network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!optax_introspect\.).*"), ("py:class", r"optax_introspect\._recalibrate\.Model")]

# Docstrings write code between single backticks.
default_role = "code"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # dtypes and shapes stand in the text
napoleon_use_rtype = False
maximum_signature_line_length = 88
add_module_names = False

myst_heading_anchors = 3
# Fenced code without a language is what is printed, or a command.
highlight_language = "text"

html_theme = "furo"
html_title = "optax_introspect"
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
# What is built lies as the sources do; this leads from the top folder to the first page.
templates_path = ["templates"]
html_additional_pages = {"index": "to_first_page.html"}
