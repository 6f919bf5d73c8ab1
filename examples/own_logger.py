"""Tell another program how a training goes: JSON by HTTP after each verification and at the end.

    python examples/own_logger.py FOLDER --url http://127.0.0.1:9000/hook

Without --url the messages are printed. With any command the same logger is chosen by its name:
    cd examples && plsc train --config run.yaml --loggers own_logger:Webhook
The address is then that of the environment variable WEBHOOK_URL.
"""

import argparse
import http.client
import json
import math
import os
import urllib.request
from pathlib import Path

from plsc import Entry
from plsc.engine.observers import Observer, Run, Step


class Webhook(Observer):
    """Only rank 0 calls it. A message that cannot be sent is printed, and training goes on."""

    def __init__(self, url: str | None = None) -> None:
        self.url, self.sent = url or os.environ.get("WEBHOOK_URL"), 0

    def on_start(self, run: Run) -> None:
        self.run = run
        self.tell(event="start", first_step=run.first_step, total_steps=run.total_steps)

    def on_verify(self, step: Step, results: dict[str, float]) -> None:
        # Reading a value of a step waits for the device; here the step is long done.
        self.tell(event="verify", step=step.number, loss=step.values["loss"], seconds=step.seconds, **results)

    def on_end(self, results: dict[str, float], error: BaseException | None) -> None:
        self.tell(event="end", error=None if error is None else str(error), **results)

    def tell(self, **message: object) -> None:
        finite = {
            name: value for name, value in message.items() if not isinstance(value, float) or math.isfinite(value)
        }
        text = json.dumps(finite)
        if not self.url:
            print(text)
            return
        request = urllib.request.Request(self.url, text.encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=10):
                self.sent += 1
        except (OSError, http.client.HTTPException) as error:  # an exception would stop the training
            print(f"{self.url}: {error}; not sent: {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("example_data/products"))
    parser.add_argument("--url")
    parser.add_argument("--output", type=Path, default=Path("example_output/own_logger"))
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    webhook = Webhook(options.url)

    entry = Entry()
    entry.set_dataset_dir(options.folder)
    entry.set_val_split(0.2)
    entry.set_model_name("ResNetTiny")
    entry.set_image_shape((3, 32, 32))
    entry.set_emb_size(64)
    entry.set_scale(32)
    entry.set_flip(False)
    entry.set_train_batch_size(32)
    entry.set_lr(0.8)
    entry.set_train_epochs(options.epochs)
    entry.set_model_save_dir(options.output)
    entry.set_auto_resume(True)
    entry.add_observer(webhook)
    entry.train()
    print(f"{webhook.sent} messages sent")


if __name__ == "__main__":
    main()
