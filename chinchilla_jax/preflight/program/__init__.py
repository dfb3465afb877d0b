"""What a compiled step does.

In: the text of an XLA module (`compiled.as_text()`) and the shape of its mesh. Out: its products, collectives, kernels
and memory traffic (`program.read_program`), and the collectives against the least that the mesh needs
(`traffic.compare`). `base/hlo.py` reads the text, `operations` and `collectives` weigh one instruction, `loops` counts
the trips of loops.
"""
