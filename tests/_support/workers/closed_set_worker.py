"""Train on class folders, or test the checkpoint, with the settings given as JSON; prints the results of each rank.

{"do": "train" or "test", "tables": folder, "<setting>": ...}
"""

import json
import sys

import plsc
from plsc.distributed.topology import init_topology

settings = json.loads(sys.argv[1])
do, tables = settings.pop("do"), settings.pop("tables", None)
entry = plsc.Entry()
entry.set_image_shape((3, 16, 16))
entry.set_model_name("ResNetTiny")
entry.set_emb_size(16)
entry.set_num_workers(0)
entry.set_scale(16)
for name, value in settings.items():
    setattr(entry, name, value)
found = entry.train() if do == "train" else entry.test(tables)
print(
    "FOUND", init_topology().rank, json.dumps({name: value for name, value in found.items() if name.startswith("val/")})
)
