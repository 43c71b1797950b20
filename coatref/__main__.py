"""`python -m coatref` is the `coatref` command."""

from coatref.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
