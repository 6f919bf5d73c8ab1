"""From a checkpoint to a model for inference. Begin with export.py; formats/ has one file per format."""
