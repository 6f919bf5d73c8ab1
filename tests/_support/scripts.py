"""Training scripts as users write them, with places to fill in."""

INTRODUCTION = """
from plsc import Entry

if __name__ == "__main__":
    ins = Entry()
    ins.set_class_num({classes})
    {extra}
    ins.train()
"""

SMALL = """ins.set_image_shape((3, 16, 16)); ins.set_model_name("ResNetTiny"); ins.set_emb_size(16)
    ins.set_train_batch_size({batch}); ins.set_train_epochs(1)"""
