"""Folders of weights as Hugging Face has them: their configs, both ways, and what goes beside the weights."""
