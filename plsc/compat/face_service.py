"""`FaceService`, the client of PLSC 0.1, over `plsc.serving.Client`. Its old import path is `face_service`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from plsc.errors import DataError, ServingError
from plsc.serving.client import Client


class FaceService:
    """Embeds images by the servers that it is connected to.

    Example:
        >>> service = FaceService()
        >>> service.connect("127.0.0.1:8866")
        >>> embeddings = service.encode([base64.b64encode(open("face.jpg", "rb").read()).decode()])
    """

    def __init__(self) -> None:
        self._servers: list[str] = []
        self._client: Client | None = None

    def connect(self, server: str = "127.0.0.1:8866") -> None:
        """Add a server, 'host:port'.

        Raises:
            ServingError: the server does not answer.
        """
        self.connect_all_server([server])

    def connect_all_server(self, server_list: Sequence[str]) -> None:
        """Add servers. Requests are spread over all of them.

        Raises:
            ServingError: a server does not answer.
        """
        client = Client([*self._servers, *server_list])
        missing = [server for server, ready in client.ready().items() if not ready]
        if missing:
            client.close()
            raise ServingError(f"FaceService: {', '.join(missing)}: no server ready there; start one with plsc serve")
        self.close()
        self._servers, self._client = [*self._servers, *server_list], client

    def encode(self, image_list: Sequence[Any]) -> list[list[float]]:
        """Embed images; each embedding is a list of D numbers of unit length.

        Args:
            image_list: images as base64 text, encoded bytes, or pixels [H, W, 3] uint8 RGB.

        Raises:
            ServingError: not connected, or no server answers.
            DataError: an image is no base64, or cannot be read.
        """
        if self._client is None:
            raise ServingError("FaceService: not connected; call connect(server) first")
        images = [_decode(index, image) for index, image in enumerate(image_list)]
        embeddings: list[list[float]] = self._client.embed(images).tolist()
        return embeddings

    def close(self) -> None:
        """Close all connections."""
        if self._client is not None:
            self._client.close()
        self._client, self._servers = None, []


def _decode(index: int, image: Any) -> Any:
    if not isinstance(image, str):
        return image
    try:
        return base64.b64decode("".join(image.split()), validate=True)
    except ValueError as error:
        raise DataError(f"image {index}: no base64: {error}") from None
