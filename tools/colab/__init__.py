"""The Colab edition: notebooks/NN_name.ipynb from notebooks/NN_name.md, in plain Markdown.

The way of a chapter through the modules: `myst` reads it as blocks; `book` knows what every label of the
book is called; `blocks` and, for running text, `inline` and `citations` write plain Markdown; `edition` puts
it into the cells of a notebook. `python -m tools.colab` writes the notebooks or, with --check, compares them.
"""
