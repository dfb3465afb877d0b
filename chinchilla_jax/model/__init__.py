"""The decoder, on one device: a `ModelConfig` and tokens go in, logits or what a loss makes of them come out.

`parts.py` says what a block can be composed of, and what each part weighs and costs; the modules beside it compute.
Arrays carry logical axis names only, no mesh: `parallel/rules.py` says what they are split over.
"""
