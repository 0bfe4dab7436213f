"""The regularised policy gradient: algorithms, losses, and one learner rank."""
