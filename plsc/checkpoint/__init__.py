"""Checkpoints: a folder per epoch, in which tensors are described by name, global shape and offset.

    output/7/manifest.json                        tensors, their parts, the digests of all, the run's progress
    output/7/model.safetensors                    the backbone and its optimizer state
    output/7/classes-000000000.safetensors        class centers from class 0 on, and their optimizer state
    output/7/classes-000050000.safetensors        class centers from class 50,000 on, and their optimizer state
    output/7/model.safetensors.index.json         which file holds which tensor, for other readers

A checkpoint does not depend on how many ranks wrote it, so any number of ranks can read it. It is written as
`output/.7.plsc-partial`, flushed to the disk, read back and renamed: a folder named by its epoch is complete.

Every block of rows of about 16 MiB has a digest, and so have each file, its header and the manifest. A block is
compared with its digest whenever it is read, so a damaged checkpoint is an error that names file, tensor and rows.

The index follows the convention of Hugging Face: 'weight_map' maps the names in the safetensors files to the files. A
tensor that lies in one file has its own name there; otherwise its parts are named by their rows, as
'head.weight.rows-0-50000'. They are joined along the first axis. `plsc checkpoint merge` writes them as one tensor.
"""

from plsc.checkpoint.finite import NotFiniteError
from plsc.checkpoint.layout import (
    MANIFEST,
    delete_checkpoint,
    is_checkpoint_name,
    is_copy,
    list_checkpoints,
    order,
    remove_leftovers,
    run_of,
)
from plsc.checkpoint.manifest import check_content
from plsc.checkpoint.reader import Block, Checkpoint, block_rows, reading
from plsc.checkpoint.writer import (
    Part,
    Rows,
    abandon,
    begin,
    complete,
    is_written,
    save_checkpoint,
    try_folder,
    write_parts,
)

__all__ = [
    "MANIFEST",
    "Block",
    "Checkpoint",
    "NotFiniteError",
    "Part",
    "Rows",
    "abandon",
    "begin",
    "block_rows",
    "check_content",
    "complete",
    "delete_checkpoint",
    "is_checkpoint_name",
    "is_written",
    "is_copy",
    "list_checkpoints",
    "order",
    "reading",
    "remove_leftovers",
    "run_of",
    "save_checkpoint",
    "try_folder",
    "write_parts",
]
