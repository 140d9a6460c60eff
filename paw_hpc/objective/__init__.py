"""The paper as pure functions on tensors: advantages, world-model loss, policy loss, and the plan that joins
them to data."""
