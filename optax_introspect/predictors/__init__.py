"""From training runs to predictors: weight histories, examples, the trainer and checkpoints."""
