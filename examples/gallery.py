"""Embed a folder of images into a gallery, and find the most similar entries for other images.

    python examples/products.py
    python examples/gallery.py example_output/products/model example_data/new_products

The folder has a folder of images per name. The last image of each name is not enrolled but searched for. Later,
`plsc gallery search MODEL GALLERY IMAGE` and `plsc serve MODEL --gallery GALLERY` read the same gallery.
Needed: pip install 'plsc[gallery]'.
"""

import argparse
from pathlib import Path

from plsc import load_inference_model, open_records
from plsc.inference.gallery import Gallery


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=Path("example_output/products/model"))
    parser.add_argument("folder", type=Path, nargs="?", default=Path("example_data/new_products"))
    parser.add_argument("--output", type=Path, default=Path("example_output/gallery"), help="must not exist")
    parser.add_argument("--threshold", type=float, default=0.4, help="cosine at which two images count as one name")
    options = parser.parse_args()
    if options.output.exists():
        parser.error(f"{options.output} exists and is not overwritten; choose another folder with --output")

    images = open_records(options.folder)
    names = [images.class_names[label] for label in images.labels]
    asked = {name: index for index, name in enumerate(names)}  # the last image of each name
    enrolled = sorted(set(range(len(images))) - set(asked.values()))

    model = load_inference_model(options.model)
    gallery = Gallery(model.emb_dim, model.card.weights)
    # A generator: one batch of images is in memory at a time.
    embeddings = model.embed(images[index].image for index in enrolled)
    gallery.add([names[index] for index in enrolled], embeddings)
    gallery.save(options.output)

    probes = model.embed(images[index].image for index in asked.values())
    found = Gallery.open(options.output).search(probes, 1, threshold=options.threshold)
    for name, (best,) in list(zip(asked, found))[:5]:
        verdict = "accepted" if best.same else "below the threshold"
        print(f"{name}: nearest {best.name}, cosine {best.cosine:.2f}, {verdict}")
    right = sum(best.name == name for name, (best,) in zip(asked, found))
    print(f"{options.output}: {len(gallery)} entries of {len(set(gallery.names))} names")
    print(f"{right} of {len(asked)} images have their own name first")


if __name__ == "__main__":
    main()
