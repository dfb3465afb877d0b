"""What will a larger budget reach? In: fits. Out: N*, D* and the loss with intervals, what to doubt, and verdicts."""
