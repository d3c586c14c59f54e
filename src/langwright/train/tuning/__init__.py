"""Adapting a pretrained model: what is learnt from examples, through the one training loop."""
