"""How many experts, when the mixture is also served? In: a law of mixtures, fitted or stated, the traffic and a chip.
Out: for each number of experts the loss-optimal mixture, the cheapest of a bounded loss, the best of a bounded cost.

`cost` has the price of a served token, `experts` the searches, `law` where the law comes from, `tables` the answers,
`findings` what they say beside the paper's.
"""
