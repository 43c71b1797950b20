"""The catalogue of known mistakes: changes of the definition, none of them anybody's code."""
