"""Training: the loop, what it continues, what it saves, and who watches it."""
