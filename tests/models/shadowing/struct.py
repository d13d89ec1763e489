"""A model named like a module of the standard library, beside another such file."""


def echo(value):
    return {"echo": value}
