"""Train a network of your own, and use it after the training.

    python examples/own_backbone.py FOLDER

A checkpoint holds the name of the class, so that `plsc test` and `plsc export` find it where this file can be imported:
    cd examples && plsc train --model-name own_backbone:SeparableNet --dataset-dir FOLDER --image-shape 3,32,32
"""

import argparse
from pathlib import Path

import paddle
from paddle import nn

from plsc import BaseModel, Entry, create_backbone, load_inference_model, open_records, register_backbone


def separable(channels_in: int, channels_out: int) -> nn.Sequential:
    """Depthwise and pointwise convolution (Howard et al., 2017), which halves the sides."""
    return nn.Sequential(
        nn.Conv2D(channels_in, channels_in, 3, stride=2, padding=1, groups=channels_in, bias_attr=False),
        nn.Conv2D(channels_in, channels_out, 1, bias_attr=False),
        nn.BatchNorm2D(channels_out),
        nn.ReLU(),
    )


@register_backbone
class SeparableNet(BaseModel):
    """[N, 3, H, W] -> [N, D], not normalized. `emb_dim` and `image_shape` are the settings of the run."""

    def __init__(self, emb_dim: int = 64, image_shape: tuple[int, int, int] = (3, 32, 32)) -> None:
        super().__init__(emb_dim)
        self.stem = nn.Sequential(nn.Conv2D(image_shape[0], 32, 3, padding=1), nn.BatchNorm2D(32), nn.ReLU())
        self.stages = nn.Sequential(separable(32, 64), separable(64, 128), separable(128, 128))
        side = [-(-length // 8) for length in image_shape[1:]]  # each stage halves it, rounded up
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(128 * side[0] * side[1], emb_dim), nn.BatchNorm1D(emb_dim))

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return self.head(self.stages(self.stem(images)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("example_data/products"))
    parser.add_argument("--output", type=Path, default=Path("example_output/own_backbone"))
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()

    entry = Entry()
    entry.set_dataset_dir(options.folder)
    entry.set_val_split(0.2)
    entry.set_model_name("SeparableNet")
    entry.set_image_shape((3, 32, 32))
    entry.set_emb_size(64)
    entry.set_scale(32)
    entry.set_flip(False)
    entry.set_train_batch_size(32)
    entry.set_lr(0.8)
    entry.set_train_epochs(options.epochs)
    entry.set_model_save_dir(options.output)
    entry.set_auto_resume(True)
    results = entry.train()

    entry.set_checkpoint_dir(options.output)
    model = load_inference_model(entry.convert_for_prediction(options.output / "model"))
    embedding = model.embed(open_records(options.folder)[0].image)
    for name in ("SeparableNet", "ResNetTiny"):
        network = create_backbone(name, emb_dim=64, image_shape=(3, 32, 32))
        print(f"{name}: {sum(weight.size for weight in network.parameters()):,} parameters")
    print(f"top-1 {results['val/top1']:.3f}; an embedding of the exported network: {list(embedding.shape)}")


if __name__ == "__main__":
    main()
