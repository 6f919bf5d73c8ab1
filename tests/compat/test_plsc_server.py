"""`PLSCServer` of PLSC 0.1."""

from __future__ import annotations

import sys

import pytest

from tests._support.ranks import run
from tests._support.servers import EMB_DIM, free_port, make_image, serving

pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from plsc.serving import Client

pytestmark = pytest.mark.server


@pytest.mark.slow
def test_plsc_server_serves(model, tmp_path):
    script = tmp_path / "serve.py"
    script.write_text(
        f"from plsc_serving.run import PLSCServer\n"
        f"PLSCServer(with_gpu=False).with_model({str(model)!r}).run(port={free_port()}, drain=0)\n"
    )
    with (
        serving(model, log=tmp_path / "log", command=[sys.executable, str(script)]) as server,
        Client(server.url) as client,
    ):
        assert client.embed(make_image(0)).shape == (1, EMB_DIM)
    status, output = run(
        [sys.executable, "-c", "from plsc_serving.run import PLSCServer; PLSCServer().run()"], check=False
    )
    assert status != 0 and "no model chosen; call with_model(path) before run()" in output
