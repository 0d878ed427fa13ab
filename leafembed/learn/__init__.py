"""Learn: text and a teacher go in, a trained student comes out. Needs the extra "train"."""
