"""The settings of the HTTP server, each defined once: name, type, range, default and description."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field

from plsc.errors import ServingError
from plsc.serving.devices import check_form
from plsc.utils.settings import Settings

MIB = 1 << 20


def _printable(value: str) -> str:
    if not (value and value.isascii() and value.isprintable()):
        raise ValueError("expected printable ASCII characters, at least one")
    return value


class ServeSettings(Settings):
    """The settings of one HTTP server. They cannot be changed after construction.

    Each is a keyword here, a key of the YAML file of `plsc serve --config`, and a flag of `plsc serve` (`max_batch` is
    `--max-batch`), except that the command line takes the model as its argument and the key from a file.

    Raises:
        ServingError: an unknown name, with the nearest known one, or a value of a wrong type or range.

    Example:
        >>> settings = ServeSettings(model="output/inference_model", port=0, workers=2)
        >>> settings.max_batch
        8
        >>> plsc.serving.serve(settings)
    """

    model_config = ConfigDict(frozen=True)

    error = ServingError
    renamed = {"max_held": "max_inflight_bytes"}
    groups = {
        "model": "Model and address",
        "workers": "Predictor processes and batches",
        "max_queue": "Limits",
        "api_key": "Access",
        "gallery": "Identification",
    }

    model: Path = Field(description="Exported model: a folder that plsc export wrote.")
    host: str = Field(default="127.0.0.1", description="Address to listen on. 0.0.0.0 stands for every IPv4 address.")
    port: int = Field(default=8866, ge=0, le=65535, description="Port to listen on. 0 takes a free port.")

    workers: int = Field(
        default=1, ge=1, description="Number of predictor processes. Each loads the model into its own memory."
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads of each predictor process. By default the cores divided by the number of processes.",
    )
    devices: Annotated[str, AfterValidator(check_form)] | None = Field(
        default=None,
        description="Where predictor processes compute: 'cpu'; 'gpu' for all GPUs, which the processes take in turn; "
        "'gpu:0,2' for these. By default all GPUs that Paddle finds, else the CPU.",
    )
    max_batch: int = Field(
        default=8, ge=1, description="Largest number of images per forward pass. For a GPU try 32 and more."
    )
    max_wait_ms: float = Field(
        default=5.0,
        ge=0,
        allow_inf_nan=False,
        description="Longest time, in milliseconds, that a batch smaller than the previous one waits for more images.",
    )

    max_queue: int = Field(
        default=512,
        ge=1,
        description="Largest number of images that wait for a predictor. Further requests are answered with 503.",
    )
    max_body: int = Field(
        default=32 * MIB,
        ge=1,
        description="Largest request body, in bytes, also after decompression. A larger one is answered with 413.",
    )
    max_inflight_bytes: int = Field(
        default=512 * MIB,
        ge=1,
        description="Largest sum of the bodies, in bytes, of all requests in progress. Further requests are answered "
        "with 503.",
    )
    max_images: int = Field(
        default=64, ge=1, description="Largest number of images per request. More are answered with 413."
    )
    max_pixels: int = Field(
        default=1 << 24,
        ge=1,
        description="Largest image, in pixels (height times width). A larger one is answered with 413.",
    )
    timeout: float = Field(
        default=30.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds in which a request's body must arrive (else 408), and in which it must be answered "
        "(else 504).",
    )
    drain: float = Field(
        default=1.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds from SIGTERM until no connection is accepted. Until then replies ask to disconnect.",
    )

    api_key: Annotated[str, AfterValidator(_printable)] | None = Field(
        default=None,
        repr=False,
        description="Key that requests must send, except to /healthz and /readyz: 'Authorization: Bearer KEY' or "
        "'X-API-Key: KEY'.",
    )
    page: bool = Field(
        default=True,
        description="Answer / with a page to try the model on, where a browser asks. It is sent without the API key, "
        "and asks for it.",
    )
    access_log: bool = Field(
        default=True, description="Write one line of JSON per request to standard output: status, time, sizes, path."
    )

    gallery: Path | None = Field(
        default=None, description="Gallery to search in /identify: a folder that plsc gallery build wrote."
    )
    threshold: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="Lowest cosine at which /verify and /identify call two images the same. Without it they give no "
        "verdict.",
    )

    @property
    def threads_per_worker(self) -> int:
        """`threads`, or the cores divided by the number of processes, 1 or more."""
        return self.threads or max(1, available_cores() // self.workers)


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))
