"""The exported model as a pipeline service of Paddle Serving 0.9, by gRPC and HTTP. Needs requirements.txt only.

Send images as base64 text under keys that begin with 'image', or as one tensor 'image' in bytes of a .npy file
(uint8 pixels [N, H, W, 3] RGB, or what the model takes). The answer has the keys 'embedding', the base64 of float32
little-endian [N, D], and 'shape', as '[N, D]'. JSON lists of floats take ten times as long: there are none here.
"""

import ast
import base64
import functools
import io
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import types
from concurrent import futures

# Before OpenCV is imported: it refuses larger images by their header.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 24))

import cv2
import grpc
import numpy as np
import waitress.channel
import waitress.task
import waitress.wasyncore
import yaml
from google.protobuf import json_format

HERE = os.path.dirname(os.path.abspath(__file__))
SERVICE, OPERATOR, INPUT = "plsc", "embed", "image"
MAX_MESSAGE, MAX_IMAGES = 64 << 20, 256
# What the second half of a whole file holds, by its beginning; older OpenCVs fill what is missing with grey.
ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}
MAX_SEGMENTS = 100  # of a JPEG; a small one with room for thousands takes minutes
BAD_REQUEST = 4000
GRACE, LATECOMERS = 10, 0.2  # seconds for what is under way when the service stops, and for what has yet to arrive
STOPPING = threading.Event()

try:
    import paddle_serving_client  # noqa: F401
except ImportError:
    # The server imports the name and, with a local predictor, never uses it; the real one runs on Python 3.9 at most.
    stub = types.ModuleType("paddle_serving_client")
    stub.Client = type("Client", (), {})
    sys.modules["paddle_serving_client"] = stub

from paddle_serving_server import pipeline  # noqa: E402
from paddle_serving_server.pipeline.pipeline_server import PipelineServer, PipelineServicer  # noqa: E402
from paddle_serving_server.pipeline.proto import pipeline_service_pb2 as messages  # noqa: E402
from paddle_serving_server.pipeline.proto import pipeline_service_pb2_grpc as stubs  # noqa: E402
from paddle_serving_server.web_service import Op, WebService  # noqa: E402


class StrictRequestOp(pipeline.RequestOp):
    """Answers what it cannot read with a reason, and runs no pickle of strangers. The original does neither."""

    def unpack_request_package(self, request):
        names = [*request.key, *(tensor.name for tensor in request.tensors)]
        try:
            if len(request.key) != len(request.value):
                raise ValueError(f"got {len(request.key)} keys and {len(request.value)} values, expected as many")
            if len(set(names)) < len(names) or len(names) > MAX_IMAGES:
                raise ValueError(f"got {len(names)} keys and tensors, expected {MAX_IMAGES} at most, none twice")
            return super().unpack_request_package(request)
        except Exception as error:
            return {}, request.logid, BAD_REQUEST, f"the request cannot be read: {error!s:.300}"

    def proto_tensor_2_numpy(self, tensor):
        if tensor.elem_type != 13:
            return super().proto_tensor_2_numpy(tensor)
        return np.load(io.BytesIO(tensor.byte_data), allow_pickle=False), None


# WebService looks the name up when it builds the graph.
pipeline.RequestOp = StrictRequestOp


class EmbedOp(Op):
    """Images to embeddings of unit length."""

    def configure(self, about):
        """Take up plsc_model.json. Not in init_op, whose errors Paddle Serving hides."""
        baked = about.get("baked", {})
        self.height, self.width = about["image_shape"][1:]
        self.takes_pixels, self.gives_unit = baked.get("preprocess", False), baked.get("normalise", False)
        self.bgr = baked.get("channels") == "BGR"
        self.flip = about["flip"] and not self.gives_unit
        self.mean, self.std = (np.asarray(about[key], np.float32) for key in ("pixel_mean", "pixel_std"))
        with open(os.path.join(HERE, "serving_server", "serving_server_conf.prototxt"), encoding="utf-8") as file:
            self.feed_name = next(
                ast.literal_eval(line.split(":", 1)[1].strip()) for line in file if line.strip().startswith("name:")
            )

    def preprocess(self, input_dicts, data_id=0, log_id=0):
        ((_, inputs),) = input_dicts.items()
        try:
            batch = self.batch(inputs)
        except (ValueError, TypeError, cv2.error) as error:
            return {}, True, BAD_REQUEST, str(error)[:300]
        return {self.feed_name: batch}, False, None, ""

    def postprocess(self, input_dicts, fetch_dict, data_id=0, log_id=0):
        outputs = np.asarray(next(iter(fetch_dict.values())), np.float32)
        if self.flip:
            outputs = outputs[: len(outputs) // 2] + outputs[len(outputs) // 2 :]
        if not self.gives_unit:
            outputs = outputs / np.maximum(np.linalg.norm(outputs, axis=1, keepdims=True), 1e-12)
        text = base64.b64encode(np.ascontiguousarray(outputs, "<f4").tobytes()).decode()
        return {"embedding": text, "shape": str(list(outputs.shape))}, None, ""

    def batch(self, inputs):
        """What the model takes, of a request's keys."""
        tensor = inputs.get(INPUT)
        keys = sorted((key for key in inputs if key.startswith(INPUT)), key=place)
        if isinstance(tensor, np.ndarray) and (len(keys) > 1 or not tensor.ndim or len(tensor) > MAX_IMAGES):
            raise ValueError(
                f"got the keys {keys[:5]}, a tensor of {list(tensor.shape)} among them, expected one "
                f"tensor of {MAX_IMAGES} images at most, or keys of single images"
            )
        if isinstance(tensor, np.ndarray) and tensor.dtype != np.uint8:
            want = "uint8 [N, H, W, 3]" if self.takes_pixels else f"float32 [N, 3, {self.height}, {self.width}]"
            if self.takes_pixels or tensor.dtype != np.float32 or tensor.shape[1:] != (3, self.height, self.width):
                raise ValueError(f"tensor '{INPUT}': got {tensor.dtype} {list(tensor.shape)}, expected {want}")
            if not len(tensor) or not np.isfinite(tensor).all():
                raise ValueError(f"tensor '{INPUT}': empty, or holds NaN or infinity")
            return np.concatenate([tensor, tensor[..., ::-1]]) if self.flip else tensor
        if isinstance(tensor, np.ndarray):
            if tensor.ndim != 4 or tensor.shape[3] != 3 or not tensor.size:
                raise ValueError(f"tensor '{INPUT}': got {list(tensor.shape)} of uint8, expected [N, H, W, 3]")
            pixels = [self.fit(image) for image in tensor]
        else:
            pixels = [self.fit(self.decode(key, inputs[key])) for key in keys]
        if not pixels:
            raise ValueError(f"got the keys {sorted(inputs)[:5]}, expected '{INPUT}'")
        return self.normalise(np.stack(pixels))

    def decode(self, key, text):
        if not isinstance(text, str):
            raise ValueError(f"'{key}': got {type(text).__name__}, expected base64 text")
        try:
            encoded = base64.b64decode(text, validate=True)
        except ValueError as error:
            raise ValueError(f"'{key}': no base64: {error}") from None
        end = ENDS.get(encoded[:2])
        if end and encoded.rfind(end, len(encoded) // 2) < 0:
            raise ValueError(f"'{key}': a truncated image of {len(encoded)} bytes")
        if encoded[:2] == b"\xff\xd8" and max(encoded.count(b"\xff\xda"), encoded.count(b"\xff\xe1")) > MAX_SEGMENTS:
            raise ValueError(f"'{key}': a JPEG of more than {MAX_SEGMENTS} scans or EXIF segments")
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR) if encoded else None
        if pixels is None:
            raise ValueError(f"'{key}': {len(encoded)} bytes that are no image")
        return pixels[..., ::-1]

    def fit(self, pixels):
        if pixels.shape[:2] == (self.height, self.width):
            return pixels
        way = cv2.INTER_AREA if pixels.shape[0] > self.height else cv2.INTER_LINEAR
        return cv2.resize(np.ascontiguousarray(pixels), (self.width, self.height), interpolation=way)

    def normalise(self, pixels):
        if self.flip:
            pixels = np.concatenate([pixels, pixels[:, :, ::-1]])
        if self.takes_pixels:
            return np.ascontiguousarray(pixels[..., ::-1] if self.bgr else pixels)
        return np.ascontiguousarray(((pixels.astype(np.float32) - self.mean) / self.std).transpose(0, 3, 1, 2))


class BoundServer(PipelineServer):
    """Listens where it is told. The original listens on every address, and its gateway outlives SIGTERM."""

    def __init__(self, name, host):
        super().__init__(name)
        self.host = host

    def run_server(self):
        servicer = PipelineServicer(self._name, self._response_op, self._conf)
        # Paddle Serving hides what goes wrong at the start, so ask before anybody else does.
        found = servicer.inference(blank_request(), None)
        if found.err_no:
            give_up(f"the service cannot answer: {found.err_msg}")
        is_v6 = ":" in self.host
        address = f"[{self.host}]" if is_v6 else self.host
        options = [("grpc.max_send_message_length", MAX_MESSAGE), ("grpc.max_receive_message_length", MAX_MESSAGE)]
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=self._worker_num), options=options)
        stubs.add_PipelineServiceServicer_to_server(servicer, server)
        try:
            if not server.add_insecure_port(f"{address}:{self._rpc_port}"):
                raise RuntimeError("it is taken")
            listener = socket.create_server(
                (self.host, self._http_port), backlog=1024, family=socket.AF_INET6 if is_v6 else socket.AF_INET
            )
        except (OSError, RuntimeError) as error:
            give_up(f"cannot listen on {self.host}, ports {self._rpc_port} and {self._http_port}: {error}")
        server.start()
        # By default 100 idle connections would keep it from accepting any other.
        front = waitress.create_server(
            functools.partial(answer, servicer),
            sockets=[listener],
            threads=self._worker_num,
            max_request_body_size=MAX_MESSAGE,
            connection_limit=4096,
            channel_timeout=60,
            asyncore_use_poll=True,
        )
        front.channel_class = PartingChannel
        threading.Thread(target=front.run, daemon=True).start()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: STOPPING.set())
        print(f"ready: gRPC on {address}:{self._rpc_port}, HTTP on {address}:{self._http_port}", flush=True)
        STOPPING.wait()
        stopped = server.stop(grace=GRACE)
        drain(front)
        stopped.wait()
        # The graph's threads have no end of their own.
        os._exit(0)


def give_up(reason):
    """End at once: the graph's threads would live on."""
    print(reason, file=sys.stderr, flush=True)
    os._exit(1)


class PartingTask(waitress.task.WSGITask):
    """Has its connection closed behind the answer once the service stops."""

    def execute(self):
        if STOPPING.is_set():
            self.request.headers["CONNECTION"] = "close"
        super().execute()


class PartingChannel(waitress.channel.HTTPChannel):
    task_class = PartingTask


def drain(front):
    """Take no more connections, and wait until what was taken is answered."""

    def close_listener():
        while select.select([front.socket], [], [], 0)[0]:
            front.handle_accept()
        # Of the listening socket alone: the server's own close would end the answers too.
        waitress.wasyncore.dispatcher.close(front)

    end = time.monotonic() + GRACE
    front.trigger.pull_trigger(close_listener)
    time.sleep(LATECOMERS)
    while time.monotonic() < end and any(
        channel.requests or channel.request or channel.total_outbufs_len
        for channel in list(front.active_channels.values())
    ):
        time.sleep(0.02)


def place(key):
    """image, image0, image1, ... image10: by number, not by letters."""
    number = key[len(INPUT) :]
    return (int(number) if number.isdecimal() and len(number) < 10 else -1, key)


def blank_request():
    """One black image."""
    image = cv2.imencode(".png", np.zeros([64, 64, 3], np.uint8))[1].tobytes()
    return messages.Request(key=[INPUT], value=[base64.b64encode(image).decode()], name=SERVICE, method="prediction")


def answer(servicer, environ, start_response):
    """One HTTP request: POST /plsc/<method> with a pipeline Request in JSON."""
    _, name, method = (environ["PATH_INFO"] + "//").split("/")[:3]
    if environ["REQUEST_METHOD"] != "POST" or name != SERVICE or not method:
        message = {"err_no": 404, "err_msg": f"expected POST /{SERVICE}/prediction"}
        found = reply(start_response, "404 Not Found", message)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else found
    try:
        request = json_format.Parse(environ["wsgi.input"].read(), messages.Request())
    except Exception as error:  # the parser stumbles over what is no object in several ways
        return reply(start_response, "400 Bad Request", {"err_no": 400, "err_msg": str(error)[:300]})
    request.name, request.method = name, method
    found = json_format.MessageToDict(
        servicer.inference(request, None), including_default_value_fields=True, preserving_proto_field_name=True
    )
    return reply(
        start_response,
        "200 OK"
        if found["err_no"] == 0
        else "400 Bad Request"
        if found["err_no"] == BAD_REQUEST
        else "500 Internal Server Error",
        found,
    )


def reply(start_response, status, value):
    body = json.dumps(value).encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


class EmbedService(WebService):
    """One operator."""

    def __init__(self, host):
        super().__init__(name=SERVICE)
        self._server = BoundServer(SERVICE, host)

    def get_pipeline_response(self, read_op):
        op = EmbedOp(name=OPERATOR, input_ops=[read_op])
        with open(os.path.join(HERE, "plsc_model.json"), encoding="utf-8") as file:
            op.configure(json.load(file))
        return op


def main():
    with open(os.path.join(HERE, "config.yml"), encoding="utf-8") as file:
        settings = yaml.safe_load(file)
    listen = settings.pop("listen")
    host = os.environ.get("PLSC_HOST", listen["host"])
    settings["rpc_port"] = int(os.environ.get("PLSC_RPC_PORT", listen["rpc_port"]))
    settings["http_port"] = int(os.environ.get("PLSC_HTTP_PORT", listen["http_port"]))
    settings["op"][OPERATOR]["local_service_conf"]["model_config"] = os.path.join(HERE, "serving_server")
    if not os.isatty(0) and os.getpgid(0) != os.getpid():
        # Where a model fails to load, Paddle Serving kills its whole process group.
        os.setpgid(0, 0)
    service = EmbedService(host)
    service.prepare_pipeline_config(yml_dict=settings)
    service.run_service()


if __name__ == "__main__":
    main()
