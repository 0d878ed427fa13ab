"""Ship: INT8, bundle, card, benchmark and the encoder that runs a bundle."""
