"""An exported model in use: model card, predictor, the path from an image to its embedding, galleries."""
