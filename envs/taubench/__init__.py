"""TauBench (tau2): customer service with tools, a policy and a simulated user."""
