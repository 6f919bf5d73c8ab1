"""Ranks: the topology of a run and the collectives over its ranks. Only this package names `paddle.distributed`."""
