"""``python -m jetfleet``: the same as the ``jetfleet`` command."""

from jetfleet.cli import main

if __name__ == "__main__":
    main()
