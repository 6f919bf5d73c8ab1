"""From samples on disk to batches. Without Paddle, because worker processes use it."""
