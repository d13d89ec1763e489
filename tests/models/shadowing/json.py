"""Never meant to be the standard library's."""

raise ImportError("the host imported a file of the model in place of the standard library")
