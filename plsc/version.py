"""The version, apart so that it can be read without importing anything."""

__version__ = "3.0.0"
