"""In the environment of Paddle Serving: its real HttpClient, from its wheel, against the embedded server.

Arguments: 'host:port', the folder of serving_client_conf.prototxt, a .npz of inputs, a .npz to write.
"""

import collections
import collections.abc
import os
import sys

import numpy as np

sys.path.insert(0, os.path.join(sys.prefix, "client"))
# Gone from this place since Python 3.10.
collections.Iterable = collections.abc.Iterable
from paddle_serving_client.httpclient import HttpClient  # noqa: E402
from paddle_serving_client.proto import general_model_config_pb2  # noqa: E402

address, configuration, inputs, output = sys.argv[1:]
tensor, found = np.load(inputs)["tensor"], {}
for proto in (True, False):
    for zipped in (True, False):
        client = HttpClient()
        client.load_client_config(configuration)
        client.set_http_proto(proto)
        client.set_request_compress(zipped)
        client.set_response_compress(zipped)
        client.connect([address])
        seen = []
        client.requests_session.hooks["response"].append(lambda reply, *_, seen=seen, **__: seen.append(reply))
        name = f"{'proto' if proto else 'json'}_{'gzip' if zipped else 'plain'}"
        for batch, feed in ((True, tensor), (False, tensor[0])):
            reply = client.predict({client.get_feed_names()[0]: feed}, client.get_fetch_names(), batch=batch)
            assert reply is not None, f"{name}: the client gave up"
            # On the wire too: neither side falls back to plain bytes.
            wire = (seen[-1].request.headers.get("Content-Encoding"), seen[-1].headers.get("Content-Encoding"))
            assert wire == (("gzip", "gzip") if zipped else (None, None)), f"{name}: {wire}"
            if proto:
                output_tensor = reply.outputs[0].tensor[0]
                values, shape = output_tensor.float_data, output_tensor.shape
            else:
                output_tensor = reply["outputs"][0]["tensor"][0]
                values, shape = output_tensor["float_data"], output_tensor["shape"]
            found[f"{name}_{'batch' if batch else 'single'}"] = np.array(values, np.float32).reshape(list(shape))
# And the configuration files, as its own messages write them.
with open(os.path.join(configuration, "serving_client_conf.stream.prototxt"), "rb") as file:
    stream = file.read()
message = general_model_config_pb2.GeneralModelConfig.FromString(stream)
with open(os.path.join(configuration, "serving_client_conf.prototxt")) as file:
    assert file.read() == str(message)
assert message.SerializeToString() == stream
np.savez(output, **found)
