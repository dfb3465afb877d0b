"""How is a model trained otherwise? One paper a module.

`stages(config)` of a module makes the stages of a run whose config has that method (`method.py` has the settings and
what they cost). A method is an objective, a function that makes the first state of a stage, or both.
"""
