"""That each backbone, at its full size, trains, resumes, exports and embeds equally after the export. CPU.

    python benchmarks/backbones.py --out backbones.json            # all; half an hour of one core, 5 GiB of memory
    python benchmarks/backbones.py --names MobileFaceNet,ViT-T

Each network takes two steps of two synthetic images, and the same with a stop in between: the tensors of the last
checkpoints must be equal to the bit. Its checkpoint is exported to every format, each of which is compared with the
network by the export itself, and the exported model embeds two images. The figure is the greatest difference of a
number of these unit embeddings from that of the network that was trained. What the JSON file holds is not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout

FORMATS = ["paddle", "legacy", "serving", "onnx"]


def main() -> None:
    import plsc

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", help="divided by commas; by default all of the library and one of Paddle's")
    parser.add_argument("--side", type=int, default=112, help="of the images, in pixels")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures, which grows with each network")
    options = parser.parse_args()
    names = options.names.split(",") if options.names else [*plsc.list_backbones(), "paddle.vision.models:resnet18"]
    found = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    for name in names:
        if name not in found:
            began = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                found[name] = examine(name, options.side, Path(folder))
            found[name]["seconds"] = round(time.monotonic() - began, 1)
            if options.out:
                options.out.write_text(json.dumps(found, indent=1) + "\n")
        print(name, found[name], flush=True)


def examine(name: str, side: int, folder: Path) -> dict[str, object]:
    """Whether a run that resumed equals one that did not, and how far the exported model is from the network."""
    import numpy as np

    import plsc
    from plsc.checkpoint import Checkpoint

    network = train(name, side, folder / "whole", 2)
    train(name, side, folder / "broken", 1)
    train(name, side, folder / "broken", 2)
    whole, broken = (Checkpoint(folder / run) for run in ("whole", "broken"))
    same = all(np.array_equal(whole.read(tensor), broken.read(tensor)) for tensor in whole.names())
    entry = entry_of(name, side, folder / "whole")
    entry.convert_for_prediction(str(folder / "model"), FORMATS)
    pixels = list(np.random.default_rng(0).integers(0, 256, [2, side, side, 3], np.uint8))
    difference = np.abs(plsc.load_inference_model(folder / "model").embed(pixels) - embeddings(network, pixels)).max()
    return {"resumed equals never stopped": same, "greatest difference": float(difference)}


def entry_of(name: str, side: int, folder: Path):
    import plsc

    entry = plsc.Entry()
    entry.set_model_name(name)
    entry.set_image_shape((3, side, side))
    entry.set_dataset_dir("synthetic:4:16")
    entry.set_class_num(4)
    entry.set_train_batch_size(2)
    entry.set_num_workers(0)
    entry.set_with_test(False)
    entry.set_model_save_dir(str(folder))
    entry.set_auto_resume(True)
    return entry


def train(name: str, side: int, folder: Path, steps: int):
    """Train to so many steps, from the newest checkpoint in the folder; returns the network."""
    import paddle

    import plsc

    paddle.seed(1)
    entry = entry_of(name, side, folder)
    entry.set_train_steps(steps)
    trainer = plsc.Trainer(entry.config)
    trainer.train()
    return trainer.backbone


def embeddings(network, pixels):
    """The unit embeddings of images, each the sum of those of the image and of its mirror image."""
    import numpy as np
    import paddle

    network.eval()
    batch = (np.stack(pixels).astype(np.float32).transpose(0, 3, 1, 2) - 127.5) / 128
    with paddle.no_grad():
        rows = [network(paddle.to_tensor(images.copy())).numpy() for images in (batch, batch[:, :, :, ::-1])]
    sums = rows[0] + rows[1]
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
