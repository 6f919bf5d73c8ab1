"""Train on class folders, one folder of images per product, and name the product on new images.

    python examples/products.py FOLDER

A fifth of the images of each class is held out: "top-1" is the share of these whose class is found. For photographs
take another network and size, as --network ResNet50 --size 112, and leave the flip on.
"""

import argparse
import csv
from pathlib import Path

from plsc import Entry, load_inference_model, open_records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("example_data/products"))
    parser.add_argument("--output", type=Path, default=Path("example_output/products"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--network", default="ResNetTiny")
    parser.add_argument("--size", type=int, default=32, help="of the images that the network takes, in pixels")
    options = parser.parse_args()

    entry = Entry()
    entry.set_dataset_dir(options.folder)
    entry.set_val_split(0.2)
    entry.set_class_balanced(True)  # products with few images come as often as those with many
    entry.set_model_name(options.network)
    entry.set_image_shape((3, options.size, options.size))
    entry.set_emb_size(64)
    entry.set_loss_type("dist_arcface", margin2=0.3)
    entry.set_scale(32)
    entry.set_flip(False)  # a mirrored label cannot be read
    entry.set_train_batch_size(32)
    entry.set_lr(0.8)
    entry.set_lr("cosine")
    entry.set_warmup_epochs(1)
    entry.set_train_epochs(options.epochs)
    entry.set_model_save_dir(options.output)
    entry.set_auto_resume(True)
    entry.train()

    entry.set_checkpoint_dir(options.output)
    results = entry.test(tables=options.output / "tables")
    model = entry.convert_for_prediction(options.output / "model", classifier=True)

    images = open_records(options.folder)
    found = load_inference_model(model).classify([images[index].image for index in range(0, len(images), 50)], top=1)
    for index, (best, *_) in zip(range(0, len(images), 50), found):
        print(f"{images.describe(index)}: {best.name}, cosine {best.score:.2f}")
    with open(options.output / "tables" / "confusions.csv", newline="") as file:
        for row in list(csv.DictReader(file))[:3]:
            print(f"confused: {row['class']} was taken for {row['predicted']} {row['images']} times")
    print(f"top-1 {results['val/top1']:.3f}, top-5 {results['val/top5']:.3f} of {results['val/images']:.0f} images")


if __name__ == "__main__":
    main()
