"""Trained models in and out. In: the folder of a run, or other people's weights. Out: a config with parameters."""
