"""What can be said of a trained model. In go weights and rows of tokens, out come their likelihoods."""
