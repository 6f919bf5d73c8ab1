"""The OpenAPI document: its paths and methods are the application's, and replies match their schemas."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests._support.closed_sets import make_classifier
from tests._support.exporting import EMB_DIM
from tests._support.http_calls import encode, get, post
from tests._support.servers import make_image

pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from plsc.inference.embedding import to_unit_length
from plsc.inference.gallery import Gallery
from plsc.inference.model import load_inference_model
from plsc.inference.model_card import read_model_card
from plsc.serving.app import Service
from plsc.serving.openapi import openapi, page
from plsc.serving.settings import ServeSettings

IMAGES = [make_image(seed) for seed in range(2)]


@pytest.fixture(scope="module")
def gallery(model, tmp_path_factory):
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    loaded = load_inference_model(model)
    made = Gallery(loaded.emb_dim, loaded.card.weights)
    made.add(["a", "b"], to_unit_length(loaded.embed(IMAGES)))
    folder = tmp_path_factory.mktemp("gallery") / "g"
    made.save(folder)
    return folder


def documented(settings):
    service = Service(settings)
    document = openapi(settings, service.card)
    found = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    # Starlette adds HEAD to each GET.
    described = [route for route in service.routes if route.include_in_schema]
    routes = {(route.path, method) for route in described for method in route.methods - {"HEAD"}}
    return document, found, routes


def test_paths_and_methods_are_those_of_the_routes(model, gallery, tmp_path):
    make_classifier(tmp_path / "m")
    made = Gallery(EMB_DIM, read_model_card(tmp_path / "m").weights)
    made.add(["a"], np.eye(1, EMB_DIM, dtype=np.float32))
    made.save(tmp_path / "g")
    _, found, routes = documented(ServeSettings(model=tmp_path / "m", gallery=tmp_path / "g"))
    assert found == routes


def test_what_the_server_has_not_is_missing(model, gallery):
    _, found, routes = documented(ServeSettings(model=model))
    assert routes - found == {("/identify", "POST"), ("/classify", "POST")} and found <= routes
    _, found, routes = documented(ServeSettings(model=model, gallery=gallery))
    assert routes - found == {("/classify", "POST")}


def test_the_document_states_the_limits_and_the_key(model):
    document, *_ = documented(ServeSettings(model=model, max_images=7, max_body=1234, api_key="k"))
    assert "At most 7 images and 1234 bytes" in document["info"]["description"]
    assert document["security"] == [{"bearer": []}, {"key": []}]
    assert "security" not in documented(ServeSettings(model=model))[0]


def test_the_page_lists_every_path(model, gallery):
    document, *_ = documented(ServeSettings(model=model, gallery=gallery))
    text = page(document)
    assert all(f" {path}</code>" in text for path in document["paths"])


def matches(value, schema):
    """Whether a JSON value matches a schema, for the keywords that the document uses."""
    names = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": float}
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    if value is None:
        return "null" in kinds
    if not isinstance(value, tuple(names[kind] for kind in kinds if kind != "null")):
        return False
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            return False
        return all(matches(item, schema["items"]) for item in value)
    properties = schema.get("properties")
    return properties is None or (
        set(value) == set(properties) and all(matches(value[name], properties[name]) for name in value)
    )


@pytest.mark.server
def test_classes_match_their_schema(classifying):
    server, _ = classifying
    schema = json.loads(get(server, "/openapi.json").data)["paths"]["/classify"]["post"]["responses"]["200"]["content"]
    reply = post(server, "/classify", {"images": encode(IMAGES)})
    assert matches(json.loads(reply.data), schema["application/json"]["schema"])


@pytest.mark.server
def test_replies_match_their_schemas(server):
    paths = json.loads(get(server, "/openapi.json").data)["paths"]
    replies = {
        ("/embed", "post"): post(server, "/embed", {"images": encode(IMAGES)}),
        ("/verify", "post"): post(server, "/verify", {"images": encode(IMAGES)}),
        ("/FaceClassifyService/inference", "post"): post(
            server, "/FaceClassifyService/inference", {"base64_string": encode(IMAGES)}
        ),
        **{(path, "get"): get(server, path) for path in ("/healthz", "/readyz", "/openapi.json", "/metrics", "/")},
    }
    for (path, method), reply in replies.items():
        ((kind, content),) = paths[path][method]["responses"]["200"]["content"].items()
        assert reply.status == 200 and reply.headers["Content-Type"].startswith(kind), path
        value = json.loads(reply.data) if kind == "application/json" else reply.data.decode()
        assert matches(value, content["schema"]), path
