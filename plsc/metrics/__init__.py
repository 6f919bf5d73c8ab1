"""How well embeddings separate identities: verification of pairs, identification in a gallery. NumPy only."""
