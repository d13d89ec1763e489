"""A model whose import fails."""

print("loading weights")
raise RuntimeError("no weights here")
