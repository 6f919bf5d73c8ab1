"""One predictor in a process of its own: `python -m plsc.serving.worker MODEL THREADS FINGERPRINT NUMBER DEVICES`.

Paddle holds Python's interpreter lock while it computes. In the server's own process it would block every other
request, health checks among them, for the time of a batch.

The protocol on standard input and output, little-endian:

    request: kind (IMAGES, FEATURES or TENSORS) and a shape of four sizes, 5 x uint32; then the data, uint8 pixels for
             the first two, the model's input type for tensors
    reply:   DONE, rows, columns, 3 x uint32; then float32 [rows, columns]
             FAILED or READY, length, 0, 3 x uint32; then a message of that many bytes
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import struct
import sys
from typing import BinaryIO

import numpy as np

from plsc.errors import ServingError
from plsc.serving.devices import device_of
from plsc.utils.lazy import require_paddle
from plsc.utils.logging import guard_standard_error, lossy

REQUEST, REPLY = struct.Struct("<5I"), struct.Struct("<3I")
# Pixels to embeddings of unit length; the model's input to its outputs; pixels to outputs, which a softmax head takes.
IMAGES, TENSORS, FEATURES = 0, 1, 2
DONE, FAILED, READY = 0, 1, 2


def main() -> None:
    """Load the model, report it, then answer requests until standard input ends."""
    _ignore_signals()
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # Paddle prints to standard output; that goes to the log instead of between the replies.
    os.dup2(2, 1)
    # A log that cannot be written, such as a pipe without a reader, must not end a predictor.
    guard_standard_error()
    sys.stdout = lossy(sys.stdout)
    try:
        _import_paddle()
        choose_device(int(sys.argv[4]), sys.argv[5] or None)
        from plsc.inference.model import InferenceModel
        from plsc.inference.predictor import keep_memory

        keep_memory()
        model = InferenceModel(sys.argv[1], threads=int(sys.argv[2]))
        if model.card.fingerprint != sys.argv[3]:
            raise ServingError(f"{sys.argv[1]}: another model has been exported there since; restart the server")
        names = model.warm_up()
        _ignore_signals()  # Paddle has installed handlers of its own
    except Exception as error:
        _send(replies, FAILED, str(error).encode())
        return
    run = {IMAGES: model.embed_pixels, TENSORS: model.run, FEATURES: model.features_of_pixels}
    _send(replies, READY, json.dumps(names).encode())
    while len(header := requests.read(REQUEST.size)) == REQUEST.size:
        kind, *shape = REQUEST.unpack(header)
        dtype = np.dtype(np.uint8) if kind != TENSORS else model.card.input_dtype
        size = int(np.prod(shape)) * dtype.itemsize
        data = requests.read(size)
        if len(data) < size:
            return
        batch = np.frombuffer(data, dtype).reshape(shape)
        try:
            found = run[kind](batch)
        except Exception as error:
            _send(replies, FAILED, str(error).strip()[-500:].encode())
            continue
        replies.write(REPLY.pack(DONE, *found.shape))
        replies.write(np.ascontiguousarray(found, "<f4").data)
        replies.flush()


def choose_device(number: int, devices: str | None) -> None:
    """Have Paddle compute on the device of the process with this number, and keep nothing on the first GPU.

    Raises:
        ServingError: a GPU that the setting `devices` asks for is not there.
    """
    paddle = require_paddle()
    paddle.set_device(device_of(number, devices, gpus=paddle.device.cuda.device_count()))


def _import_paddle() -> None:
    """Import Paddle without its warning of several OpenMP threads, which the settings of the server ask for."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            require_paddle()
    finally:
        for line in said.getvalue().splitlines():
            if "OMP_NUM_THREADS" not in line:
                print(line, file=sys.stderr)


def _ignore_signals() -> None:
    # The server ends a worker by closing its input, after the last batch. A signal to the process group must not.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _send(replies: BinaryIO, status: int, message: bytes) -> None:
    replies.write(REPLY.pack(status, len(message), 0) + message)
    replies.flush()


if __name__ == "__main__":
    main()
