"""Train with a margin of your own: classes with few images get a larger one.

    python examples/own_margin.py FOLDER

The margin is that of LDAM (Cao et al., NeurIPS 2019), on the cosine: cos - m_c with m_c proportional to n_c^(-1/4) for
the n_c images of class c, and `largest` for the rarest class. The scale is that of the run. A built-in margin of this
kind, on the angle: set_loss_type("dist_dynamic_margin").
"""

import argparse
from pathlib import Path

import numpy as np
import paddle

from plsc import Entry, open_records
from plsc.utils.ranges import Range


class RareClassMargin:
    """Called with the target cosines, the norms and the labels of the global batch, [G] each.

    Args:
        largest: margin of the rarest class, 0 to 1.
    """

    is_per_sample = True  # what is returned for a sample depends on no other sample

    def __init__(self, largest: float = 0.4) -> None:
        self.largest = largest

    def set_class_counts(self, counts: np.ndarray, classes: Range) -> None:
        """Called once, before the first step, with the images of each class, [C], and the classes of this rank."""
        weights = np.maximum(counts, 1.0) ** -0.25
        self._margins = paddle.to_tensor(self.largest * weights / weights.max(), dtype="float32")

    def __call__(
        self, cosine: paddle.Tensor, norms: paddle.Tensor, labels: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """What replaces the cosine, and its derivative by the cosine."""
        return cosine - self._margins[labels].astype(cosine.dtype), paddle.ones_like(cosine)

    def of_class(self, label: int) -> float:
        return float(self._margins[label])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("example_data/products"))
    parser.add_argument("--output", type=Path, default=Path("example_output/own_margin"))
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    margin = RareClassMargin()

    entry = Entry()
    entry.set_dataset_dir(options.folder)
    entry.set_loss_type(margin)
    entry.set_scale(32)
    entry.set_val_split(0.2)
    entry.set_model_name("ResNetTiny")
    entry.set_image_shape((3, 32, 32))
    entry.set_emb_size(64)
    entry.set_flip(False)
    entry.set_train_batch_size(32)
    entry.set_lr(0.8)
    entry.set_train_epochs(options.epochs)
    entry.set_model_save_dir(options.output)
    entry.set_auto_resume(True)
    results = entry.train()

    counts = np.bincount(open_records(options.folder).labels)
    for label in (int(counts.argmin()), int(counts.argmax())):
        print(f"class {label}: {counts[label]} images, margin {margin.of_class(label):.3f}")
    print(f"top-1 {results['val/top1']:.3f}")


if __name__ == "__main__":
    main()
