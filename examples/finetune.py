"""Take a trained network to class folders with other classes: those of the same name keep their centers.

    python examples/products.py example_data/products
    python examples/finetune.py --checkpoint example_output/products FOLDER

The run before is only read.
"""

import argparse
from pathlib import Path

from plsc import Entry, open_records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("example_data/new_products"))
    parser.add_argument("--before", type=Path, default=Path("example_data/products"), help="class folders of that run")
    parser.add_argument("--checkpoint", type=Path, default=Path("example_output/products"))
    parser.add_argument("--output", type=Path, default=Path("example_output/finetune"))
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()

    entry = Entry()
    entry.set_dataset_dir(options.folder)
    entry.set_val_split(0.2)
    entry.set_checkpoint_dir(options.checkpoint)
    entry.set_class_change("by_name")
    entry.set_new_classes("mean")  # a new center begins at the mean feature of its images
    entry.set_frozen("body.0.*", "body.1.*")  # names as `plsc checkpoint inspect` lists them
    entry.set_backbone_lr_factor(0.1)
    # The network and the loss, as in the run before.
    entry.set_model_name("ResNetTiny")
    entry.set_image_shape((3, 32, 32))
    entry.set_emb_size(64)
    entry.set_loss_type("dist_arcface", margin2=0.3)
    entry.set_scale(32)
    entry.set_flip(False)
    entry.set_train_batch_size(32)
    entry.set_lr(0.4)
    entry.set_lr("cosine")
    entry.set_warmup_steps(5)
    entry.set_train_epochs(options.epochs)
    entry.set_model_save_dir(options.output)
    entry.set_auto_resume(True)  # the same command goes on with its own run, once that has a checkpoint
    results = entry.train()

    old, new = (set(open_records(folder).class_names) for folder in (options.before, options.folder))
    print(f"classes kept {len(old & new)}, new {len(new - old)}, gone {len(old - new)}")
    print(f"top-1 {results['val/top1']:.3f} after {options.epochs} epochs")


if __name__ == "__main__":
    main()
