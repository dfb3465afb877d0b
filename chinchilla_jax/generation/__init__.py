"""Text from a trained model. In: its weights and prompts. Out: tokens, one after the other, and their text."""
