"""Runs that a test resumes."""

from __future__ import annotations


def train_and_resume(entry):
    """Train with `entry`, then set it up to resume for a second epoch; returns it."""
    entry.set_with_test(False)
    entry.train()
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_train_epochs(2)
    return entry
