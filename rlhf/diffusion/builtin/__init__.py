"""How the built-in base models are trained, measured and exported."""
