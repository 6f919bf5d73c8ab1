"""The version, apart so that it can be read without importing anything."""

__version__ = "1.0.0"
