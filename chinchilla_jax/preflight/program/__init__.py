"""What a compiled step does. In: the text of an XLA module. Out: its products, collectives and memory traffic."""
