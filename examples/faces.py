"""Train on faces in RecordIO and verify on sets of pairs after each epoch.

    python examples/faces.py FOLDER
    plsc launch --devices cpu --nproc_per_node 2 examples/faces.py FOLDER

FOLDER has train.rec, train.idx and property, and verification sets such as lfw.bin, as the public sets of InsightFace.
For these: --network ResNet50 --size 112 --epochs 20 --batch-size 128.
"""

import argparse
from pathlib import Path

from plsc import Entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("example_data/faces"))
    parser.add_argument("--output", type=Path, default=Path("example_output/faces"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--network", default="ResNetTiny")
    parser.add_argument("--size", type=int, default=32, help="of the images that the network takes, in pixels")
    parser.add_argument("--batch-size", type=int, default=32, help="of each rank")
    options = parser.parse_args()
    sets = sorted(path.stem for path in options.folder.glob("*.bin"))
    if not sets:
        parser.error(f"{options.folder} has no verification set NAME.bin; plsc data pairs makes one")

    entry = Entry()
    entry.set_dataset_dir(options.folder)
    entry.set_val_targets(",".join(sets))
    entry.set_model_name(options.network)
    entry.set_image_shape((3, options.size, options.size))
    entry.set_emb_size(128)
    entry.set_loss_type("dist_arcface")
    entry.set_flip(True)  # both halves of a face show who it is
    entry.set_train_batch_size(options.batch_size)
    entry.set_lr(0.4)
    entry.set_lr("cosine")
    entry.set_warmup_epochs(1)
    entry.set_train_epochs(options.epochs)
    entry.set_model_save_dir(options.output)
    entry.set_auto_resume(True)
    entry.train()

    entry.set_checkpoint_dir(options.output)
    results = entry.test()
    print(f"{'set':12} {'pairs':>6} {'accuracy':>9} {'threshold':>10} {'AUC':>6}")
    for name in sets:
        pairs, accuracy, threshold, auc = (
            results[f"{name}/{key}"] for key in ("pairs", "accuracy", "threshold", "auc")
        )
        print(f"{name:12} {pairs:6.0f} {accuracy:9.3f} {threshold:10.3f} {auc:6.3f}")


if __name__ == "__main__":
    main()
