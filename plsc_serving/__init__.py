"""The import path of PLSC 0.1's server. New code: `plsc.serving`."""
