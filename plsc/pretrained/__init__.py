"""Weights from elsewhere: read from the files of other libraries, and matched with a network by name.

`opening.open_weights` recognizes a file and gives its tensors by name; `torch_file`, `paddle_file`, `safetensors_file`
and `onnx_file` read one format each. `schemes` has the names that other libraries give to the layers of the same
networks, `matching` puts tensors into a network by them, and `shards` joins the class centers that ranks have written.

No file is trusted: none can run anything, and time and memory are bounded by its size.
"""
