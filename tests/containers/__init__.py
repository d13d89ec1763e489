"""Tests with a real Docker engine, a real registry, and model images made from Debian and PyPI."""
