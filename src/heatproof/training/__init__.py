"""Training the small models from recipes: ``train(recipe, folder)`` writes weights and their card."""

from heatproof.training.train import train

__all__ = ["train"]
