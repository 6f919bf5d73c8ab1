"""Verification accuracy on glyphs with class centers and momentum in each storage, three seeds. CPU.

    python benchmarks/storage_accuracy.py --out storage-accuracy.json      # half an hour on one core
    python benchmarks/storage_accuracy.py --identities 60 --epochs 2 --seeds 1

The recipe of `plsc demo` on one rank: ResNetTiny and ArcFace on generated characters, verified on pairs of other
characters. "none" has ten times the learning rate for the class centers, as docs/storage.md advises. What the JSON file
holds is not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout

MODES = {
    "float32 + float32": {},
    "float32 + bfloat16": {"momentum_storage": "bfloat16"},
    "bfloat16 + bfloat16": {"center_storage": "bfloat16", "momentum_storage": "bfloat16"},
    "bfloat16 + int8": {"center_storage": "bfloat16", "momentum_storage": "int8"},
    "bfloat16 + none": {"center_storage": "bfloat16", "momentum_storage": "none", "head_lr_factor": 10.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", help=f"some of {', '.join(MODES)}, divided by commas; by default all")
    parser.add_argument("--identities", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures, which grows with each run")
    options = parser.parse_args()
    found = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    for mode in options.modes.split(",") if options.modes else MODES:
        for seed in range(options.seeds):
            if str(seed) not in found.setdefault(mode, {}):
                found[mode][str(seed)] = train(MODES[mode], seed, options)
                if options.out:
                    options.out.write_text(json.dumps(found, indent=1) + "\n")
        figures = [100.0 * value for value in found[mode].values()]
        each = ", ".join(f"{value:.2f}" for value in figures)
        print(f"{mode:20s} {statistics.mean(figures):.2f} % ({each})", flush=True)


def train(settings: dict[str, object], seed: int, options: argparse.Namespace) -> float:
    """The accuracy of verification at the end."""
    from plsc import Config, Trainer
    from plsc.data.sources.glyphs import GlyphRecords, glyph_verification_set

    images, batch = 20, 128
    steps = -(-options.identities * images // batch)
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            train_dataset=GlyphRecords(options.identities, images, image_size=32),
            test_dataset=glyph_verification_set(options.identities, 100, num_pairs=2000, image_size=32, seed=1),
            num_classes=options.identities,
            model_name="ResNetTiny",
            image_shape=(3, 32, 32),
            emb_dim=128,
            loss_type="dist_arcface",
            margin2=0.3,
            scale=32.0,
            flip=False,
            train_batch_size=batch,
            lr=0.8,
            warmup_epochs=1,
            lr_steps=(steps * options.epochs * 5 // 8, steps * options.epochs * 7 // 8),
            train_epochs=options.epochs,
            num_workers=0,
            seed=seed,
            model_save_dir=folder,
            **settings,
        )
        results = Trainer(config).train()
    (name,) = (name for name in results if name.endswith("/accuracy"))
    return float(results[name])


if __name__ == "__main__":
    main()
