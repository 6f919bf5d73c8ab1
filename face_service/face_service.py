"""`FaceService`, the client of PLSC 0.1, as a thin name over `plsc.serving.Client`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from plsc.errors import DataError, ServingError
from plsc.serving.client import Client


class FaceService:
    """Embeds images by the servers it is connected to."""

    def __init__(self) -> None:
        self._servers: list[str] = []
        self._client: Client | None = None

    def connect(self, server: str = "127.0.0.1:8866") -> None:
        """Add a server, 'host:port'.

        Raises:
            ServingError: it does not answer.
        """
        self.connect_all_server([server])

    def connect_all_server(self, server_list: Sequence[str]) -> None:
        """Add servers; images are spread over all of them.

        Raises:
            ServingError: one does not answer.
        """
        client = Client([*self._servers, *server_list])
        missing = [server for server, ready in client.ready().items() if not ready]
        if missing:
            client.close()
            raise ServingError(f"FaceService: {', '.join(missing)}: no server ready there; start one with plsc serve")
        self.close()
        self._servers, self._client = [*self._servers, *server_list], client

    def encode(self, image_list: Sequence[Any]) -> list[list[float]]:
        """Embeddings, a list of D numbers each, of images: base64 text, encoded bytes or pixels.

        Raises:
            ServingError: not connected, or no server answers.
            DataError: an image is no base64, or cannot be read.
        """
        if self._client is None:
            raise ServingError("FaceService: not connected; call connect(server) first")
        return self._client.embed([_decoded(index, image) for index, image in enumerate(image_list)]).tolist()

    def close(self) -> None:
        """Close all connections."""
        if self._client is not None:
            self._client.close()
        self._client, self._servers = None, []


def _decoded(index: int, image: Any) -> Any:
    if not isinstance(image, str):
        return image
    try:
        return base64.b64decode("".join(image.split()), validate=True)
    except ValueError as error:
        raise DataError(f"image {index}: no base64: {error}") from None
