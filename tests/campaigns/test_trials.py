from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from testbed.campaigns.trials import interleave

names = st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=4, unique=True)


@given(names, names, st.integers(1, 5), st.integers(0, 99))
def test_each_repeat_is_a_block_with_every_pair_once(policies, scenarios, repeats, seed):
    trials = interleave(policies, scenarios, repeats, seed)
    pairs = [(policy, scenario) for policy in policies for scenario in scenarios]
    for repeat in range(repeats):
        block = trials[repeat * len(pairs) : (repeat + 1) * len(pairs)]
        assert Counter((t.policy, t.scenario) for t in block) == Counter(pairs)
        assert {t.repeat for t in block} == {repeat}
    assert len({t.name for t in trials}) == len(trials)


@given(names, names, st.integers(1, 3), st.integers(0, 99))
def test_the_order_follows_from_the_seed(policies, scenarios, repeats, seed):
    assert interleave(policies, scenarios, repeats, seed) == interleave(policies, scenarios, repeats, seed)


def test_repeats_differ_in_their_order():
    trials = interleave(["a", "b"], ["x", "y", "z"], 4, seed=1)
    blocks = [tuple((t.policy, t.scenario) for t in trials[i : i + 6]) for i in range(0, 24, 6)]
    assert len(set(blocks)) > 1
