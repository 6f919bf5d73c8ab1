"""`plsc doctor`: what a machine has and lacks for training, as findings with their meaning and their cure.

`findings.py` holds the registry of checks, `examination.py` runs them; each other module holds a group of checks.
"""
