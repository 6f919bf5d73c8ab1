"""Embed image files with a running `plsc serve`, and compare the first two."""

import sys

from plsc import PLSCError
from plsc.serving import Client

if len(sys.argv) < 2:
    raise SystemExit("usage: python client.py IMAGE [IMAGE ...]")

with Client("http://127.0.0.1:8866") as client:
    try:
        embeddings = client.embed(sys.argv[1:], progress=True)
    except PLSCError as error:
        raise SystemExit(str(error)) from None
    print(f"{len(embeddings)} embeddings of {embeddings.shape[1]}")
    if len(embeddings) > 1:
        print(f"cosine of the first two: {embeddings[0] @ embeddings[1]:.3f}")
