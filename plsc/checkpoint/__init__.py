"""Checkpoints: a folder per epoch, in which tensors are described by name, global shape and offset.

    output/7/manifest.json                        lists tensors and their parts; holds the run's progress
    output/7/model.safetensors                    the backbone and its optimizer state
    output/7/classes-000000000.safetensors        class centers from class 0 on, and their optimizer state
    output/7/classes-000050000.safetensors        class centers from class 50,000 on, and their optimizer state

A checkpoint does not depend on how many ranks wrote it, so any number of ranks can read it. It is written as
`output/.7.plsc-partial`, flushed to the disk and renamed: a folder named by its epoch is complete.
"""

from plsc.checkpoint.layout import MANIFEST, is_checkpoint_name, list_checkpoints, order, prune_checkpoints
from plsc.checkpoint.manifest import check_content
from plsc.checkpoint.reader import Checkpoint, reading
from plsc.checkpoint.writer import Part, check_finite, save_checkpoint, try_folder

__all__ = [
    "MANIFEST",
    "Checkpoint",
    "Part",
    "check_content",
    "check_finite",
    "is_checkpoint_name",
    "list_checkpoints",
    "order",
    "prune_checkpoints",
    "reading",
    "save_checkpoint",
    "try_folder",
]
