"""What every package may use: atomic writes, files, ranges, threads, settings."""
