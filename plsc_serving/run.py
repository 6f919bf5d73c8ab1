"""Import path of PLSC 0.1. The class is defined in plsc/compat/plsc_server.py; new code uses `plsc.serving.serve`."""

from plsc.compat.plsc_server import PLSCServer

__all__ = ["PLSCServer"]
