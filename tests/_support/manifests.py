"""A checkpoint's manifest, edited by tests."""

import json

from safetensors.numpy import load_file, save_file

from plsc.checkpoint.manifest import seal

INDEX = "model.safetensors.index.json"


def edited(data, change):
    """The bytes of a manifest with its content changed by a function, and its digest written anew where it has one."""
    content = json.loads(data)
    is_sealed = content.pop("digest", None) is not None
    change(content)
    return seal(content) if is_sealed else json.dumps(content).encode()


def edit_manifest(folder, change):
    """Change the manifest of a checkpoint by a function."""
    path = folder / "manifest.json"
    path.write_bytes(edited(path.read_bytes(), change))


def downgrade(folder):
    """Make a checkpoint one of version 1: it has no digests and no index, and tensors have one name in all files."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    names = {}
    for name, entry in content["tensors"].items():
        for part in entry["parts"]:
            names.setdefault(part["file"], {})[part["key"]] = name
            for key in ("key", "block_rows", "digests"):
                del part[key]
    (folder / INDEX).unlink()
    sizes = {}
    for file, keys in names.items():
        save_file({keys[key]: value for key, value in load_file(folder / file).items()}, folder / file)
        sizes[file] = (folder / file).stat().st_size
    content = {
        "format": "plsc-checkpoint",
        "version": 1,
        "about": content["about"],
        "files": sizes,
        "tensors": content["tensors"],
    }
    path.write_text(json.dumps(content, indent=1))
