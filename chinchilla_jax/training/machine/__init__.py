"""What a run asks of the machine under it: programs compiled ahead, compiler flags, the peak, the allocator."""
