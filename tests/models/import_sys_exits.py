"""A model whose import asks to exit."""

import sys

sys.exit("configuration missing")
