"""Where a run's wall time goes: booked second by second, compiled into shares, traced on request."""
