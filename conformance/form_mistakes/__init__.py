"""Known mistakes in single primitives and blocks; `known.form_mistakes(name)` lists them."""
