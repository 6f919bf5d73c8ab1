"""Conversion between data formats (writers, conversion, resumable) and inspection of data sets."""
