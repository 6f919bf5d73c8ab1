"""The demo's training script, as a user would write it: it trains on glyphs and verifies on other glyphs."""

import argparse
import json
from pathlib import Path

from plsc import Entry
from plsc.data.sources.glyphs import GlyphRecords, glyph_verification_set
from plsc.distributed.topology import place_from_environment

parser = argparse.ArgumentParser()
parser.add_argument("--output", required=True)
parser.add_argument("--identities", type=int, required=True)
parser.add_argument("--images-per-identity", type=int, required=True)
parser.add_argument("--pairs", type=int, required=True)
parser.add_argument("--image-size", type=int, default=32)
parser.add_argument("--epochs", type=int, required=True)
parser.add_argument("--decay-epochs", type=int, nargs="+", required=True)
parser.add_argument("--batch-size", type=int, default=64, help="per rank")
parser.add_argument("--ranks", type=int, required=True)
parser.add_argument("--resume", action="store_true")
options = parser.parse_args()

entry = Entry()
entry.train_dataset = GlyphRecords(options.identities, options.images_per_identity, image_size=options.image_size)
# The identities after those trained on, so that verification has none of them.
entry.test_dataset = glyph_verification_set(
    options.identities, options.identities // 4, num_pairs=options.pairs, image_size=options.image_size, seed=1
)
entry.set_emb_size(128)
entry.set_image_shape((3, options.image_size, options.image_size))
entry.set_model_name("ResNetTiny")
entry.set_loss_type("dist_arcface", margin2=0.3)
entry.set_scale(32)
entry.set_flip(False)  # a mirrored b looks like a d
entry.set_train_batch_size(options.batch_size)
steps_per_epoch = -(-options.identities * options.images_per_identity // (options.batch_size * options.ranks))
entry.set_lr(0.8)
entry.set_warmup_epochs(1)
entry.set_step_boundaries([epoch * steps_per_epoch for epoch in options.decay_epochs])
entry.set_train_epochs(options.epochs)
entry.set_num_workers(1)
entry.set_log_period(50)
entry.set_model_save_dir(f"{options.output}/checkpoints")
if options.resume:
    entry.set_checkpoint_dir(f"{options.output}/checkpoints")
results = entry.train()
if place_from_environment()[0] == 0:  # every rank has the results; rank 0 writes them
    Path(options.output, "results.json").write_text(json.dumps(results))
