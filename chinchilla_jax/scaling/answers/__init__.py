"""What should be trained? In: laws, published or fitted, and a question. Out: an `Answer`, a table of choices.

`answers` has the questions, `decide` the arithmetic of one law, `recommended` the law behind a prediction, `next_runs`
the runs that would narrow it. `forecast` says where runs under way will end, by `shared_noise`, `nearby` and `law_at`;
`alarm` which of them go wrong.
"""
