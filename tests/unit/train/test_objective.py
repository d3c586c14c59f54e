"""What a batch weighs and what its loss is."""

import torch

from langwright.train.linear_nll import IGNORED
from langwright.train.objective import CAUSAL_LM, Piece, count_targets
from tests.unit.train.tiny import make_batch, make_config, make_model


def test_causal_lm_scores_the_next_token():
    model, batch = make_model(make_config()), make_batch()
    piece = Piece(torch.from_numpy(batch.ids), torch.from_numpy(batch.targets))
    log_p = torch.log_softmax(model(piece.ids), -1)
    expected = -sum(log_p[b, t, piece.targets[b, t]] for b in range(6) for t in range(piece.ids.shape[1]))
    torch.testing.assert_close(CAUSAL_LM.loss(model, piece), expected)


def test_ignored_targets_do_not_count():
    batch = make_batch()
    assert count_targets(batch) == batch.targets.size
    batch.targets[:2] = IGNORED
    assert count_targets(batch) == batch.targets.size * 4 // 6
