"""Actions for states that have none: the labeler, simulator labels, corrective transitions, labeled batches."""
