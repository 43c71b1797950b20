"""How far an honest implementation may be off, derived from its declared precision: `docs/error-model.md` has the whole.

local.py     how much one primitive's own rounding may change each element of its result
probes.py    what all these changes together make of every later value, by running the definition with them
verdict.py   from the errors of a candidate and the spread of the probes to pass, fail or cannot judge
"""
