"""Research checkpoints as diffusers' networks, exactly."""
