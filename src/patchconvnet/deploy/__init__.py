"""From a model to people: what runs a network away from its training."""
