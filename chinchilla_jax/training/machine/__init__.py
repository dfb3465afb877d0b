"""What a run asks of the machine under it.

In goes a config or a mesh; out come its programs, compiled before it can start or where the machine is not, and the
peak FLOP/s.
"""
