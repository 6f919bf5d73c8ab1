"""How well embeddings tell identities apart: verification of pairs, identification in a gallery. NumPy only."""
