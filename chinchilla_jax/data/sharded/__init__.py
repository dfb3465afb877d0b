"""A corpus that outgrows a machine's memory, in shards. In: a source. Out: a store of many files, one global order.

`stages.py` has pure functions of a shard or a bucket, whose results are files; `pipeline.py` puts them in order and an
engine (`engine.py`) runs them, as many at a time as it likes. What is there already is not made again.
"""
