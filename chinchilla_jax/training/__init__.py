"""One pure train step, and the loop, checkpoints and metrics around it."""
