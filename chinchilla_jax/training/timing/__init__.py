"""Where a run's wall time goes. In go readings of a timer, out come seconds by part, shares of them, and traces."""
