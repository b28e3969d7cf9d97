"""The cast: session, inference, dispatcher, collector, learner, and the campaign wiring them."""
