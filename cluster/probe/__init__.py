"""Whether a model can read hints, asked before it is trained: `hindsight probe`."""
