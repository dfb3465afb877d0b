"""What would a run do on the slice it is meant for? Read from its compiled train step, before a slice is paid for."""
