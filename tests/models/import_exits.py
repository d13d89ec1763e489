"""A model whose import ends the process the hard way."""

import os

print("about to go", flush=True)
os._exit(9)
