"""Token batches made of a data set's sequences."""
