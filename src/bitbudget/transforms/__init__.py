"""Changes of the weights that leave what the model computes as it was: scaling of the channels between two operations."""
