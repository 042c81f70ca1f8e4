"""ssmrl: reinforcement learning with long memory."""
