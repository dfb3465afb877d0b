"""Measuring tools: in goes the name of a kernel or a law, out come counts or tables. Nothing that trains imports them.

`tpu_meter` counts the cycles of TPU kernels without a TPU, `search_tiles` ranks the tiles of the attention kernels by
them, `simulate` draws runs from a known law, `parity` makes propositions for a teacher.
"""
