"""`plsc gallery`."""

from __future__ import annotations

import json
import re
import sys

import pytest

from tests._support.ranks import run
from tests._support.servers import make_image, make_model

pytest.importorskip("faiss", reason="faiss-cpu is not installed")

IMAGES = [make_image(seed) for seed in range(5)]


@pytest.mark.slow
def test_a_gallery_by_the_command_line(model, tmp_path):
    for person in ("ann", "bob"):
        (tmp_path / "faces" / person).mkdir(parents=True)
    for number, image in enumerate(IMAGES[:4]):
        (tmp_path / "faces" / ("ann" if number < 2 else "bob") / f"{number}.png").write_bytes(image)
    (tmp_path / "carl.png").write_bytes(IMAGES[4])
    (tmp_path / "report.json").write_text(json.dumps({"lfw/threshold": 0.99}))

    def plsc(*arguments, check=True):
        return run([sys.executable, "-m", "plsc", "gallery", *arguments], check=check)[1]

    assert "4 entries of 2 names" in plsc("build", model, tmp_path / "g", tmp_path / "faces")
    assert "exists and is not overwritten" in plsc("build", model, tmp_path / "g", tmp_path / "faces", check=False)
    assert "5 entries of 3 names" in plsc("add", model, tmp_path / "g", tmp_path / "carl.png")
    output = plsc(
        "search",
        model,
        tmp_path / "g",
        tmp_path / "carl.png",
        tmp_path / "faces/bob/2.png",
        "-k",
        1,
        "--report",
        tmp_path / "report.json",
    )
    found = [json.loads(line) for line in re.findall(r"^\{.*\}$", output, re.MULTILINE)]
    assert [row["matches"][0]["name"] for row in found] == ["carl", "bob"]
    assert all(row["matches"][0]["same"] and row["threshold"] == 0.99 for row in found)
    # What the same weights give otherwise packed is the same; what others give is not.
    make_model(tmp_path / "baked", bake=("normalize",))
    plsc("search", tmp_path / "baked", tmp_path / "g", tmp_path / "carl.png")
    make_model(tmp_path / "other", seed=1)
    for command in (("add",), ("search",)):
        assert "built with other weights" in plsc(
            *command, tmp_path / "other", tmp_path / "g", tmp_path / "carl.png", check=False
        )
    assert "1 entries removed, 4 left" in plsc("remove", tmp_path / "g", "carl")
    make_model(tmp_path / "other", emb_dim=8)
    assert "gallery's embeddings are of 16, the model's of 8" in plsc(
        "search", tmp_path / "other", tmp_path / "g", tmp_path / "carl.png", check=False
    )
