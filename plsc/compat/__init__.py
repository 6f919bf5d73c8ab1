"""What only scripts of PLSC 0.x need. The old import paths re-export it."""
