"""Other programs: one module each, for what they need and what they give."""
