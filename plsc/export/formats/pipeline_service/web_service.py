"""The exported model as a pipeline service of Paddle Serving 0.9, by gRPC and HTTP.

It needs the packages of requirements.txt, not PLSC, and runs on Python 3.8 and newer. From an image it computes the
same embedding as plsc/inference/embedding.py, which a test of PLSC checks.

A request has images as base64 text under keys that begin with 'image', or one tensor 'image' in bytes of a .npy file:
uint8 pixels [N, H, W, 3] RGB, or the network's own input. The reply has the keys 'embedding', the base64 of float32
little-endian [N, D], and 'shape', the text '[N, D]'. A JSON list of floats would take ten times as long.
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

# To be set before OpenCV is imported. OpenCV refuses larger images by their header.
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
# By a file's first bytes: bytes that a complete file has in its second half. Older OpenCVs decode a truncated file and
# fill the missing part with gray.
ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}
MAX_SEGMENTS = 100  # scans or EXIF segments of a JPEG: a small file with thousands of them takes minutes to decode
BAD_REQUEST = 4000
EPSILON = 1e-12  # a shorter embedding is not brought to unit length; zero stays zero
GRACE = 10  # seconds for requests in progress when the service stops
LATE = 0.2  # seconds for requests that clients have sent and that have not arrived when the service stops
STOPPING = threading.Event()
PREDICTING = threading.Lock()

try:
    import paddle_serving_client  # noqa: F401
except ImportError:
    # The server imports this package, which supports Python up to 3.9 only. With a local predictor it never uses it.
    stub = types.ModuleType("paddle_serving_client")
    stub.Client = type("Client", (), {})
    sys.modules["paddle_serving_client"] = stub

from paddle_serving_server import pipeline  # noqa: E402
from paddle_serving_server.pipeline.pipeline_server import PipelineServer, PipelineServicer  # noqa: E402
from paddle_serving_server.pipeline.proto import pipeline_service_pb2 as messages  # noqa: E402
from paddle_serving_server.pipeline.proto import pipeline_service_pb2_grpc as stubs  # noqa: E402
from paddle_serving_server.web_service import Op, WebService  # noqa: E402


class StrictRequestOp(pipeline.RequestOp):
    """Replies to a malformed request with the reason, and unpickles nothing. The original does neither."""

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


# WebService looks up this name when it builds the graph.
pipeline.RequestOp = StrictRequestOp


class EmbedOp(Op):
    """Images to embeddings of unit length."""

    def configure(self, about):
        """Set up from the content of plsc_model.json. Not in init_op, because Paddle Serving hides its errors."""
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

    def process(self, feed_batch, typical_logid=0):
        """Run the predictor. The threads of an operator share one, which gives one thread the outputs of another."""
        with PREDICTING:
            return super().process(feed_batch, typical_logid)

    def postprocess(self, input_dicts, fetch_dict, data_id=0, log_id=0):
        outputs = np.asarray(next(iter(fetch_dict.values())), np.float32)
        if self.flip:
            outputs = outputs[: len(outputs) // 2] + outputs[len(outputs) // 2 :]
        if not self.gives_unit:
            outputs = outputs / np.maximum(np.linalg.norm(outputs, axis=1, keepdims=True), EPSILON)
        text = base64.b64encode(np.ascontiguousarray(outputs, "<f4").tobytes()).decode()
        return {"embedding": text, "shape": str(list(outputs.shape))}, None, ""

    def batch(self, inputs):
        """The network's input for the images of a request, by key."""
        tensor = inputs.get(INPUT)
        keys = sorted((key for key in inputs if key.startswith(INPUT)), key=image_number)
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
        return self.to_input(np.stack(pixels))

    def decode(self, key, text):
        """Base64 text of an encoded image to pixels [H, W, 3] uint8 RGB."""
        if not isinstance(text, str):
            raise ValueError(f"'{key}': got {type(text).__name__}, expected base64 text")
        try:
            encoded = base64.b64decode(text, validate=True)
        except ValueError as error:
            raise ValueError(f"'{key}': not base64: {error}") from None
        end = ENDS.get(encoded[:2])
        if end and encoded.rfind(end, len(encoded) // 2) < 0:
            raise ValueError(f"'{key}': a truncated image of {len(encoded)} bytes")
        if encoded[:2] == b"\xff\xd8" and max(encoded.count(b"\xff\xda"), encoded.count(b"\xff\xe1")) > MAX_SEGMENTS:
            raise ValueError(f"'{key}': a JPEG of more than {MAX_SEGMENTS} scans or EXIF segments")
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR) if encoded else None
        if pixels is None:
            raise ValueError(f"'{key}': {len(encoded)} bytes that are not an image")
        return pixels[..., ::-1]

    def fit(self, pixels):
        """Resize pixels [H', W', 3] to the network's [H, W, 3]."""
        if pixels.shape[:2] == (self.height, self.width):
            return pixels
        kind = cv2.INTER_AREA if pixels.shape[0] > self.height else cv2.INTER_LINEAR
        return cv2.resize(np.ascontiguousarray(pixels), (self.width, self.height), interpolation=kind)

    def to_input(self, pixels):
        """The network's input [N, ...] for pixels [N, H, W, 3] uint8 RGB; 2 N rows with `flip`, mirror images last."""
        if self.flip:
            pixels = np.concatenate([pixels, pixels[:, :, ::-1]])
        if self.takes_pixels:
            return np.ascontiguousarray(pixels[..., ::-1] if self.bgr else pixels)
        return np.ascontiguousarray(((pixels.astype(np.float32) - self.mean) / self.std).transpose(0, 3, 1, 2))


class BoundServer(PipelineServer):
    """Listens on one address, and ends on SIGTERM after the requests in progress.

    The original listens on every address, and its HTTP gateway goes on after SIGTERM.
    """

    def __init__(self, name, host):
        super().__init__(name)
        self.host = host

    def run_server(self):
        servicer = PipelineServicer(self._name, self._response_op, self._conf)
        # Paddle Serving hides errors of the start. A first request shows them.
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
                raise RuntimeError("the port is in use")
            listener = socket.create_server(
                (self.host, self._http_port), backlog=1024, family=socket.AF_INET6 if is_v6 else socket.AF_INET
            )
        except (OSError, RuntimeError) as error:
            give_up(f"cannot listen on {self.host}, ports {self._rpc_port} and {self._http_port}: {error}")
        server.start()
        # By default waitress accepts no connection beyond 100, idle ones counted.
        front = waitress.create_server(
            functools.partial(answer, servicer),
            sockets=[listener],
            threads=self._worker_num,
            max_request_body_size=MAX_MESSAGE,
            connection_limit=4096,
            channel_timeout=60,
            asyncore_use_poll=True,
        )
        front.channel_class = ClosingChannel
        threading.Thread(target=front.run, daemon=True).start()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: STOPPING.set())
        print(f"ready: gRPC on {address}:{self._rpc_port}, HTTP on {address}:{self._http_port}", flush=True)
        STOPPING.wait()
        stopped = server.stop(grace=GRACE)
        drain(front)
        stopped.wait()
        # Threads of the graph never end by themselves.
        os._exit(0)


def give_up(reason):
    """Print the reason and end the process at once, with the threads of the graph."""
    print(reason, file=sys.stderr, flush=True)
    os._exit(1)


class ClosingTask(waitress.task.WSGITask):
    """Closes the connection after the reply once the service stops."""

    def execute(self):
        if STOPPING.is_set():
            self.request.headers["CONNECTION"] = "close"
        super().execute()


class ClosingChannel(waitress.channel.HTTPChannel):
    task_class = ClosingTask


def drain(front):
    """Accept no more connections, and wait until the accepted ones have their replies, GRACE seconds at most."""

    def close_listener():
        while select.select([front.socket], [], [], 0)[0]:
            front.handle_accept()
        # Closes the listening socket only. The server's own close would end the replies too.
        waitress.wasyncore.dispatcher.close(front)

    end = time.monotonic() + GRACE
    front.trigger.pull_trigger(close_listener)
    time.sleep(LATE)
    while time.monotonic() < end and any(
        channel.requests or channel.request or channel.total_outbufs_len
        for channel in list(front.active_channels.values())
    ):
        time.sleep(0.02)


def image_number(key):
    """Sort key that puts image, image0, image1, ... image10 in the order of their numbers."""
    number = key[len(INPUT) :]
    return (int(number) if number.isdecimal() and len(number) < 10 else -1, key)


def blank_request():
    """A request with one black image."""
    image = cv2.imencode(".png", np.zeros([64, 64, 3], np.uint8))[1].tobytes()
    return messages.Request(key=[INPUT], value=[base64.b64encode(image).decode()], name=SERVICE, method="prediction")


def answer(servicer, environ, start_response):
    """The WSGI application: POST /plsc/<method> with a pipeline Request in JSON."""
    _, name, method = (environ["PATH_INFO"] + "//").split("/")[:3]
    if environ["REQUEST_METHOD"] != "POST" or name != SERVICE or not method:
        message = {"err_no": 404, "err_msg": f"expected POST /{SERVICE}/prediction"}
        found = reply(start_response, "404 Not Found", message)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else found
    try:
        request = json_format.Parse(environ["wsgi.input"].read(), messages.Request())
    except Exception as error:  # on JSON that is not an object the parser raises errors of several classes
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
    """A WSGI response with a JSON body."""
    body = json.dumps(value).encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


class EmbedService(WebService):
    """A service of one operator."""

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
        # When a model fails to load, Paddle Serving kills its process group. This group has no other process.
        os.setpgid(0, 0)
    service = EmbedService(host)
    service.prepare_pipeline_config(yml_dict=settings)
    service.run_service()


if __name__ == "__main__":
    main()
