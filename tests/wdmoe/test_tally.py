"""What a selection is made of, by device: pairs and mass."""

import numpy as np
import pytest

from payloads.wdmoe.routing import Routing, Selection
from payloads.wdmoe.tally import weigh


def test_a_token_whose_choice_has_no_score_counts_beside_one_that_moved():
    """A router that likes none of its choice likes them equally, whatever becomes of the other tokens."""
    scores = np.array([[0, 0, 0, 1.0], [0.5, 0.3, 0.2, 0]])
    routing = Routing(np.array([[0, 1], [0, 1]]), np.ones((2, 2)), scores)
    moved = Selection(np.array([[0, 1], [0, 2]]), np.ones((2, 2), bool), routing.weights)
    weighed = weigh(routing, moved, np.arange(4), 4)
    assert weighed.moved_in.tolist() == [0, 0, 1, 0]
    assert weighed.mass.tolist() == pytest.approx([0.5 + 0.5 / 0.8, 0.5, 0.2 / 0.8, 0])
    assert weighed.dropped_mass.tolist() == pytest.approx([0, 0.3 / 0.8, 0, 0])
