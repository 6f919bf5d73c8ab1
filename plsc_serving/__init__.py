"""Import path of PLSC 0.1. New code uses `plsc.serving`."""
