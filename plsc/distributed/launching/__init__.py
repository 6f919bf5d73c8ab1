"""`plsc launch`: `paddle.distributed.launch` with restarts, orderly signals, private logs, the first cause at the end.

`launcher.py` decides when to start again, `attempt.py` is one start of Paddle's launcher, `paddle_launcher.py` is that
launcher with CPU ranks and a check of the GPUs, `processes.py` finds its ranks, `logs.py` is the folder of the logs,
`reports.py` is what ranks tell about themselves, and `causes.py` finds the first cause.
"""
